// Tensor-core products, the loads of their fragments, and asynchronous copies. One warp per 32 threads.
#include "common/types.cuh"

#define AT int i = blockIdx.x * 256 + threadIdx.x;

// Where products are inexact, each d[k] is followed by the same of the absolute values: what the bound is a share of.
#define FLOAT_MMA(name, shape, types, A, B)                                                          \
    __device__ void name##_once(float (&d)[4], const u32* a, const u32* b) {                                            \
        asm volatile("mma.sync.aligned." shape ".row.col.f32." types ".f32 {%0,%1,%2,%3}, " A                            \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : B);                                              \
    }

#define FOUR_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
#define FOUR "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#define TWO_A "r"(a[0]), "r"(a[1]), "r"(b[0])
#define TWO "{%4,%5}, {%6}, {%0,%1,%2,%3};"

FLOAT_MMA(bf16_k16, "m16n8k16", "bf16.bf16", FOUR, FOUR_A)
FLOAT_MMA(bf16_k8, "m16n8k8", "bf16.bf16", TWO, TWO_A)
FLOAT_MMA(f16_k16, "m16n8k16", "f16.f16", FOUR, FOUR_A)
FLOAT_MMA(f16_k8, "m16n8k8", "f16.f16", TWO, TWO_A)
FLOAT_MMA(tf32_k8, "m16n8k8", "tf32.tf32", FOUR, FOUR_A)
FLOAT_MMA(tf32_k4, "m16n8k4", "tf32.tf32", TWO, TWO_A)

__device__ u32 pair(float lo, float hi, bool half) {
    u32 p;
    if (half)
        asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(hi), "f"(lo));
    else
        asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(hi), "f"(lo));
    return p;
}
__device__ u32 tf32(float v) {
    u32 t;
    asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(t) : "f"(v));
    return t & 0xffffe000u;
}
// The number that word w stands for: a normal as it is, or a whole number of −8 to 8, whose products and sums are exact.
__device__ float number(u32 w, bool whole) {
    return whole ? (float)((int)(w >> 5) % 9) : __uint_as_float(w);
}

enum Kind { BF16, F16, TF32 };

template <class Mma>
__device__ void products(const u32* in, u32* out, Kind kind, bool whole, Mma mma) {
    AT
    u32 a[4], b[2], abs_a[4], abs_b[2];
    // Element k of both operands' registers, from words that no other lane reads at the same place.
    for (int k = 0; k < 6; k++) {
        float lo = number(in[4 * i + (k & 3)], whole), hi = number(in[4 * (i ^ 1) + ((k + 1) & 3)], whole);
        if (k >= 4) lo = -lo;
        u32 v = kind == TF32 ? tf32(lo) : pair(lo, hi, kind == F16);
        u32 m = kind == TF32 ? v & 0x7fffffffu : v & 0x7fff7fffu;
        if (k < 4)
            a[k] = v, abs_a[k] = m;
        else
            b[k - 4] = v, abs_b[k - 4] = m;
    }
    float d[4], size[4];
    for (int k = 0; k < 4; k++) d[k] = number(in[4 * (i ^ 2) + k], whole), size[k] = fabsf(d[k]);
    mma(d, a, b);
    mma(size, abs_a, abs_b);
    for (int k = 0; k < 4; k++) out[8 * i + 2 * k] = __float_as_uint(d[k]), out[8 * i + 2 * k + 1] = __float_as_uint(size[k]);
}

#define MMA(name, kind)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) mma_##name(const u32* in, u32* out, int n) {                       \
        products(in, out, kind, false, name##_once);                                                                    \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) mma_##name##_whole(const u32* in, u32* out, int n) {               \
        products(in, out, kind, true, name##_once);                                                                     \
    }

MMA(bf16_k16, BF16)
MMA(bf16_k8, BF16)
MMA(f16_k16, F16)
MMA(f16_k8, F16)
MMA(tf32_k8, TF32)
MMA(tf32_k4, TF32)

extern "C" __global__ void __launch_bounds__(256) mma_s8_k32(const u32* in, u32* out, int n) {
    AT
    const u32 *a = in + 4 * i, *b = in + 4 * (i ^ 1);
    int d[4];
    for (int k = 0; k < 4; k++) d[k] = (int)in[4 * (i ^ 2) + k] >> 12;
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    for (int k = 0; k < 4; k++) out[4 * i + k] = (u32)d[k];
}

__device__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

extern "C" __global__ void __launch_bounds__(256) ldmatrix(const u32* in, u32* out, int n) {
    AT
    __shared__ alignas(16) u32 tile[256 * 4];
    for (int k = 0; k < 4; k++) tile[4 * threadIdx.x + k] = in[4 * i + k];
    __syncthreads();
    // Rows in an order of the warp's own; it reads what the whole block wrote.
    u32 address = shared_address(tile + 4 * ((threadIdx.x * 37 + 11) & 255)), r[4];
    u32* o = out + 15 * i;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address));
    *o++ = r[0];
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
    *o++ = r[0], *o++ = r[1];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
    for (int k = 0; k < 4; k++) *o++ = r[k];
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address));
    *o++ = r[0];
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
    *o++ = r[0], *o++ = r[1];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
    for (int k = 0; k < 4; k++) *o++ = r[k];
    *o++ = 0;
}

extern "C" __global__ void __launch_bounds__(256) cp_async(const u32* in, u32* out, int n) {
    AT
    __shared__ alignas(16) u32 wide[2][256 * 4];
    __shared__ alignas(16) u32 narrow[256 * 3];
    int t = threadIdx.x;
    u32 some = in[4 * i + 3] & 15;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(wide[0] + 4 * t)), "l"(in + 4 * i) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    // Only `some` bytes are read; the rest is zero.
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(wide[1] + 4 * t)), "l"(in + 4 * i), "r"(some) : "memory");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(narrow + 2 * t)), "l"(in + 4 * i + 2) : "memory");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(narrow + 512 + t)), "l"(in + 4 * i + 1) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    u32* o = out + 12 * i;
    int other = (t + 33) & 255;
    for (int k = 0; k < 4; k++) *o++ = wide[0][4 * other + k];
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    for (int k = 0; k < 4; k++) *o++ = wide[1][4 * other + k];
    *o++ = narrow[2 * other], *o++ = narrow[2 * other + 1], *o++ = narrow[512 + other];
    *o++ = (u32)other;
}
