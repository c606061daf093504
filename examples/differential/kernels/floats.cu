// IEEE arithmetic in its rounding modes and the conversions, exact but for the bits of a NaN, which PTX leaves open: every
// NaN is written as one. Thread i reads in[4i .. 4i + 4] and writes `words` words from out[words·i].
#include "common/types.cuh"

#define BEGIN(words)                               \
    int i = blockIdx.x * blockDim.x + threadIdx.x; \
    if (i >= n) return;                            \
    const u32* from = in + 4 * i;                  \
    u32* o = out + (words) * i;

__device__ u32 bits(float v) { return v != v ? 0x7fffffffu : __float_as_uint(v); }
__device__ u64 bits(double v) { return v != v ? 0x7fffffffffffffffull : (u64)__double_as_longlong(v); }
__device__ u32 half_bits(u32 h) { return (h & 0x7fff) > 0x7c00 ? 0x7fff : h & 0xffff; }
__device__ u32 bf16_bits(u32 h) { return (h & 0x7fff) > 0x7f80 ? 0x7fff : h & 0xffff; }
__device__ u32 pair_bits(u32 p, bool half) {
    return half ? half_bits(p) | half_bits(p >> 16) << 16 : bf16_bits(p) | bf16_bits(p >> 16) << 16;
}

#define F1(text) asm volatile(text ";" : "=f"(r) : "f"(a)); *o++ = bits(r);
#define F2(text) asm volatile(text ";" : "=f"(r) : "f"(a), "f"(b)); *o++ = bits(r);
#define F3(text) asm volatile(text ";" : "=f"(r) : "f"(a), "f"(b), "f"(c)); *o++ = bits(r);
#define MODES2(op, type) F2(op ".rn" type " %0, %1, %2") F2(op ".rz" type " %0, %1, %2") \
    F2(op ".rm" type " %0, %1, %2") F2(op ".rp" type " %0, %1, %2")
#define MODES1(op, type) F1(op ".rn" type " %0, %1") F1(op ".rz" type " %0, %1") \
    F1(op ".rm" type " %0, %1") F1(op ".rp" type " %0, %1")
#define FLOATS float a = __uint_as_float(from[0]), b = __uint_as_float(from[1]), c = __uint_as_float(from[2]), r;

extern "C" __global__ void __launch_bounds__(256) f32_arithmetic(const u32* in, u32* out, int n) {
    BEGIN(37)
    FLOATS
    MODES2("add", ".f32")
    MODES2("mul", ".f32")
    MODES2("div", ".f32")
    MODES1("sqrt", ".f32")
    MODES1("rcp", ".f32")
    F3("fma.rn.f32 %0, %1, %2, %3")
    F3("fma.rz.f32 %0, %1, %2, %3")
    F3("fma.rm.f32 %0, %1, %2, %3")
    F3("fma.rp.f32 %0, %1, %2, %3")
    F2("sub.rn.f32 %0, %1, %2")
    F2("add.rn.ftz.f32 %0, %1, %2")
    F2("mul.rn.ftz.f32 %0, %1, %2")
    F3("fma.rn.ftz.f32 %0, %1, %2, %3")
    F2("add.rn.sat.f32 %0, %1, %2")
    F3("fma.rn.sat.f32 %0, %1, %2, %3")
    F2("min.f32 %0, %1, %2")
    F2("max.f32 %0, %1, %2")
    F2("min.NaN.f32 %0, %1, %2")
    F2("max.NaN.f32 %0, %1, %2")
    F1("abs.f32 %0, %1")
    F1("neg.f32 %0, %1")
    *o++ = (u32)((a < b) | (a <= b) << 1 | (a == b) << 2 | (a != b) << 3 | !(a < b) << 4 | !(a >= b) << 5 |
                 (a > c) << 6);
}

#define D2(text) asm volatile(text ";" : "=d"(r) : "d"(a), "d"(b)); w = bits(r), *o++ = (u32)w, *o++ = (u32)(w >> 32);
#define D3(text) asm volatile(text ";" : "=d"(r) : "d"(a), "d"(b), "d"(a)); w = bits(r), *o++ = (u32)w, *o++ = (u32)(w >> 32);
#define D1(text) asm volatile(text ";" : "=d"(r) : "d"(a)); w = bits(r), *o++ = (u32)w, *o++ = (u32)(w >> 32);
#define DMODES2(op) D2(op ".rn.f64 %0, %1, %2") D2(op ".rz.f64 %0, %1, %2") D2(op ".rm.f64 %0, %1, %2") D2(op ".rp.f64 %0, %1, %2")

extern "C" __global__ void __launch_bounds__(256) f64_arithmetic(const u32* in, u32* out, int n) {
    BEGIN(45)
    double a = __longlong_as_double((i64)((u64)from[1] << 32 | from[0]));
    double b = __longlong_as_double((i64)((u64)from[3] << 32 | from[2])), r;
    u64 w;
    DMODES2("add")
    DMODES2("mul")
    DMODES2("div")
    D3("fma.rn.f64 %0, %1, %2, %3")
    D3("fma.rz.f64 %0, %1, %2, %3")
    D3("fma.rm.f64 %0, %1, %2, %3")
    D3("fma.rp.f64 %0, %1, %2, %3")
    D1("sqrt.rn.f64 %0, %1")
    D1("sqrt.rz.f64 %0, %1")
    D1("rcp.rn.f64 %0, %1")
    D2("min.f64 %0, %1, %2")
    D2("max.f64 %0, %1, %2")
    D1("neg.f64 %0, %1")
    *o++ = (u32)((a < b) | (a <= b) << 1 | (a == b) << 2 | !(a < b) << 3);
}

#define P3(text, half) asm volatile(text ";" : "=r"(p) : "r"(x), "r"(y), "r"(z)); *o++ = pair_bits(p, half);
#define P2(text, half) asm volatile(text ";" : "=r"(p) : "r"(x), "r"(y)); *o++ = pair_bits(p, half);
#define P1(text, half) asm volatile(text ";" : "=r"(p) : "r"(x)); *o++ = pair_bits(p, half);

extern "C" __global__ void __launch_bounds__(256) half_arithmetic(const u32* in, u32* out, int n) {
    BEGIN(18)
    u32 x = from[0], y = from[1], z = from[2], p;
    P2("add.rn.f16x2 %0, %1, %2", true)
    P2("sub.rn.f16x2 %0, %1, %2", true)
    P2("mul.rn.f16x2 %0, %1, %2", true)
    P3("fma.rn.f16x2 %0, %1, %2, %3", true)
    P3("fma.rn.sat.f16x2 %0, %1, %2, %3", true)
    P2("add.rn.ftz.f16x2 %0, %1, %2", true)
    P2("min.f16x2 %0, %1, %2", true)
    P2("max.f16x2 %0, %1, %2", true)
    P2("max.NaN.f16x2 %0, %1, %2", true)
    P1("neg.f16x2 %0, %1", true)
    P1("abs.f16x2 %0, %1", true)
    P3("fma.rn.bf16x2 %0, %1, %2, %3", false)
    P3("fma.rn.relu.bf16x2 %0, %1, %2, %3", false)
    P2("min.bf16x2 %0, %1, %2", false)
    P2("max.bf16x2 %0, %1, %2", false)
    P2("max.NaN.bf16x2 %0, %1, %2", false)
    P1("neg.bf16x2 %0, %1", false)
    P1("abs.bf16x2 %0, %1", false)
}

#define TO_INT(text) asm volatile(text ";" : "=r"(k) : "f"(a)); *o++ = k;
#define TO_LONG(text) asm volatile(text ";" : "=l"(w) : "f"(a)); *o++ = (u32)w, *o++ = (u32)(w >> 32);
#define FROM_INT(text) asm volatile(text ";" : "=f"(r) : "r"(from[3])); *o++ = bits(r);

// What exceeds an integer becomes its end. A NaN is given to no conversion to integers: what it becomes differs by width.
extern "C" __global__ void __launch_bounds__(256) float_conversions(const u32* in, u32* out, int n) {
    BEGIN(42)
    float a = __uint_as_float(from[0]), r;
    u32 k;
    u64 w;
    if (a != a) a = 0.0f;
    TO_INT("cvt.rni.s32.f32 %0, %1")
    TO_INT("cvt.rzi.s32.f32 %0, %1")
    TO_INT("cvt.rmi.s32.f32 %0, %1")
    TO_INT("cvt.rpi.s32.f32 %0, %1")
    TO_INT("cvt.rni.u32.f32 %0, %1")
    TO_INT("cvt.rzi.u32.f32 %0, %1")
    TO_LONG("cvt.rzi.s64.f32 %0, %1")
    TO_LONG("cvt.rni.u64.f32 %0, %1")
    a = __uint_as_float(from[0]);
    F1("cvt.rni.f32.f32 %0, %1")
    F1("cvt.rzi.f32.f32 %0, %1")
    F1("cvt.rmi.f32.f32 %0, %1")
    F1("cvt.rpi.f32.f32 %0, %1")
    F1("cvt.sat.f32.f32 %0, %1")
    F1("cvt.ftz.f32.f32 %0, %1")
    FROM_INT("cvt.rn.f32.s32 %0, %1")
    FROM_INT("cvt.rz.f32.s32 %0, %1")
    FROM_INT("cvt.rm.f32.u32 %0, %1")
    FROM_INT("cvt.rp.f32.u32 %0, %1")
    w = (u64)from[1] << 32 | from[3];
    asm volatile("cvt.rn.f32.u64 %0, %1;" : "=f"(r) : "l"(w));
    *o++ = bits(r);
    asm volatile("cvt.rz.f32.s64 %0, %1;" : "=f"(r) : "l"(w));
    *o++ = bits(r);
    double d = __longlong_as_double((i64)w), e;
    asm volatile("cvt.rn.f32.f64 %0, %1;" : "=f"(r) : "d"(d));
    *o++ = bits(r);
    asm volatile("cvt.rz.f32.f64 %0, %1;" : "=f"(r) : "d"(d));
    *o++ = bits(r);
    asm volatile("cvt.rm.f32.f64 %0, %1;" : "=f"(r) : "d"(d));
    *o++ = bits(r);
    asm volatile("cvt.rp.f32.f64 %0, %1;" : "=f"(r) : "d"(d));
    *o++ = bits(r);
    asm volatile("cvt.f64.f32 %0, %1;" : "=d"(e) : "f"(a));
    u64 v = bits(e);
    *o++ = (u32)v, *o++ = (u32)(v >> 32);
    asm volatile("cvt.rn.f64.s64 %0, %1;" : "=d"(e) : "l"(w));
    v = bits(e);
    *o++ = (u32)v, *o++ = (u32)(v >> 32);
    asm volatile("cvt.rzi.s32.f64 %0, %1;" : "=r"(k) : "d"(d != d ? 0.0 : d));
    *o++ = k;
    asm volatile("cvt.rn.f64.u32 %0, %1;" : "=d"(e) : "r"(from[3]));
    v = bits(e);
    *o++ = (u32)v, *o++ = (u32)(v >> 32);
    u16 h;
    asm volatile("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(a));
    *o++ = half_bits(h);
    asm volatile("cvt.rz.f16.f32 %0, %1;" : "=h"(h) : "f"(a));
    *o++ = half_bits(h);
    asm volatile("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(a));
    *o++ = bf16_bits(h);
    asm volatile("cvt.rz.bf16.f32 %0, %1;" : "=h"(h) : "f"(a));
    *o++ = bf16_bits(h);
    asm volatile("cvt.rn.relu.bf16.f32 %0, %1;" : "=h"(h) : "f"(a));
    *o++ = bf16_bits(h);
    h = (u16)from[3];
    asm volatile("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
    *o++ = bits(r);
    float b = __uint_as_float(from[1]);
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(k) : "f"(a), "f"(b));
    *o++ = pair_bits(k, false);
    asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(k) : "f"(a), "f"(b));
    *o++ = pair_bits(k, true);
    if (a != a) a = 1.0f;
    asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(k) : "f"(a));
    // The lowest 13 bits of a tf32 are not said.
    *o++ = k & 0xffffe000u;
}
