// What the lanes of a warp tell each other; atomics whose result has one value in whatever order; memory by every width.
// All exact.
#include "common/types.cuh"

#define SHUFFLE(mode, lane, clamp)                                                                                  \
    asm volatile("{ .reg .pred q; shfl.sync." mode ".b32 %0|q, %2, %3, %4, 0xffffffff; selp.u32 %1, 1, 0, q; }"      \
                 : "=r"(r), "=r"(ok) : "r"(a), "r"(lane), "r"(clamp));                                              \
    *o++ = r, *o++ = ok;

extern "C" __global__ void __launch_bounds__(256) warp_shuffles(const u32* in, u32* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    u32 a = in[4 * i], b = in[4 * i + 1] & 31, uniform = in[4 * (i & ~31) + 2] & 31, r, ok;
    u32* o = out + 18 * i;
    SHUFFLE("idx", b, 31)
    SHUFFLE("idx", b, 0x181f)
    SHUFFLE("up", uniform, 0)
    SHUFFLE("up", b, 0x1800)
    SHUFFLE("down", uniform, 31)
    SHUFFLE("down", b, 0x101f)
    SHUFFLE("bfly", uniform, 31)
    SHUFFLE("bfly", 1, 31)
    SHUFFLE("bfly", b, 0x1c1f)
}

extern "C" __global__ void __launch_bounds__(256) warp_votes(const u32* in, u32* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    u32 a = in[4 * i], b = in[4 * i + 1];
    u32* o = out + 16 * i;
    *o++ = __ballot_sync(~0u, a & 1);
    *o++ = __any_sync(~0u, (a & 63) == 0);
    *o++ = __all_sync(~0u, (a & 63) != 0);
    *o++ = __match_any_sync(~0u, a & 3);
    int same;
    *o++ = __match_all_sync(~0u, b & 0, &same);
    *o++ = same;
    *o++ = __match_all_sync(~0u, b & 1, &same);
    *o++ = same;
    *o++ = __reduce_add_sync(~0u, a);
    *o++ = (u32)__reduce_min_sync(~0u, (int)a);
    *o++ = __reduce_max_sync(~0u, b);
    *o++ = __reduce_and_sync(~0u, a | b);
    *o++ = __reduce_or_sync(~0u, a & b & (b >> 3));
    *o++ = __reduce_xor_sync(~0u, b);
    // Half of the warp, chosen by lane.
    u32 odd = threadIdx.x & 1, mask = odd ? 0xaaaaaaaau : 0x55555555u, v;
    if (odd)
        v = __reduce_add_sync(mask, a) ^ __shfl_sync(mask, b, 7);
    else
        v = __reduce_add_sync(mask, b) + __shfl_xor_sync(mask, a, 2);
    *o++ = v;
    *o++ = __ballot_sync(~0u, v & 4);
}

// out: 4096 cells, zero at first; thread i ends in cells of its own choice.
extern "C" __global__ void __launch_bounds__(256) atomics(const u32* in, u32* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    u32 a = in[4 * i], b = in[4 * i + 1], cell = in[4 * i + 2] & 255;
    __shared__ u32 shared[256];
    shared[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(out + cell, a);
    atomicMin((int*)out + 256 + cell, (int)a);
    atomicMax((int*)out + 512 + cell, (int)b);
    atomicMin(out + 768 + cell, b);
    atomicMax(out + 1024 + cell, a);
    atomicAnd(out + 1280 + cell, a);
    atomicOr(out + 1536 + cell, b & (b >> 7));
    atomicXor(out + 1792 + cell, a);
    atomicAdd((u64*)(out + 2048) + (cell & 127), (u64)b << 20);
    // Small whole numbers: their sums are exact in any order.
    atomicAdd((float*)out + 2304 + cell, (float)(int)(a & 1023) - 512.0f);
    atomicAdd((double*)(out + 2560) + (cell & 127), (double)(b & 0xfffff));
    atomicInc(out + 2816 + cell, 1000);
    // A sum by compare-and-swap.
    u32* at = out + 3072 + cell;
    u32 seen = 0, old;
    do {
        old = seen;
        seen = atomicCAS(at, old, old + (b >> 8));
    } while (seen != old);
    if (threadIdx.x == 0) atomicExch(out + 3328 + blockIdx.x, a);
    atomicAdd(shared + (a & 255), 1u);
    atomicMax((int*)shared + (b & 255), 0);
    __syncthreads();
    atomicAdd(out + 3584 + threadIdx.x, shared[threadIdx.x]);
    atomicSub(out + 3840 + cell, b);
}

__constant__ u32 table[8] = {3, 1, 4, 1, 5, 9, 2, 6};

extern "C" __global__ void __launch_bounds__(256) memory_widths(const u32* in, u32* out, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    u32* o = out + 16 * i;
    u32 x, y, z, w;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "l"(in + 4 * i));
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(o), "r"(w), "r"(z), "r"(y), "r"(x) : "memory");
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(x), "=r"(y) : "l"(in + 4 * i + 2));
    asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(o + 4), "r"(y), "r"(x) : "memory");
    const unsigned char* bytes = (const unsigned char*)(in + 4 * i);
    o[6] = bytes[1 + (i & 7)];
    o[7] = (u32)((const signed char*)bytes)[3 + (i & 7)];
    o[8] = ((const u16*)bytes)[1 + (i & 3)];
    o[9] = (u32)((const short*)bytes)[2 + (i & 3)];
    ((u16*)(o + 10))[0] = (u16)x, ((u16*)(o + 10))[1] = (u16)(y >> 3);
    for (int k = 0; k < 4; k++) ((unsigned char*)(o + 11))[k] = (unsigned char)(y >> k);
    o[12] = table[x & 7] * table[y & 7];
    // An array that is indexed by data lives in local memory.
    u32 local[8];
    for (int k = 0; k < 8; k++) local[k] = x * (k + 1);
    local[y & 7] ^= y;
    u32 sum = 0;
    for (u32 k = 0; k < 8; k++) sum = sum * 31 + local[(k + x) & 7];
    o[13] = sum;
    __shared__ u32 tile[16][17];
    tile[threadIdx.x & 15][threadIdx.x >> 4] = x;
    __syncthreads();
    o[14] = tile[threadIdx.x >> 4][threadIdx.x & 15];
    // The loop's length is the lane's own: lanes leave and meet again.
    u32 v = x | 1;
    for (u32 k = 0; k < (y & 15); k++) {
        if (v & 2)
            v = v * 5 + 1;
        else
            v = (v >> 1) ^ 0x9e3779b9u;
        if (v % 7 == 0) break;
    }
    o[15] = v;
}
