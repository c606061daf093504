// Philox 4x32-10 and its normals, operation by operation those of `src/engine/random.rs`: the same bits. Every rounding
// is written (`__fmul_rn`, `__fadd_rn` are never contracted).
#pragma once
#include "common/types.cuh"

// A stream of noise, as it stands in device memory: what changes per step is read, not passed.
struct Stream {
    u64 seed;
    u64 stream;
    u64 first; // the number of the first normal
};

// What stands at `at`, read once per block; for all threads of it together.
__device__ __forceinline__ Stream stream_of(const Stream* at) {
    __shared__ Stream shared;
    if (threadIdx.x == 0) shared = *at;
    __syncthreads();
    return shared;
}

struct Four {
    u32 w[4];
};

__device__ __forceinline__ Four philox(u64 seed, u64 stream, u64 block) {
    u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }

// Natural logarithm of a positive normal float.
__device__ __forceinline__ float defined_ln(float x) {
    u32 bits = __float_as_uint(x) + (0x3f800000u - 0x3f3504f3u);
    float k = __int2float_rn((int)(bits >> 23) - 127);
    float m = __uint_as_float((bits & 0x007fffffu) + 0x3f3504f3u);
    float f = sub(m, 1.0f);
    float s = __fdiv_rn(f, add(2.0f, f));
    float z = mul(s, s);
    float w = mul(z, z);
    float t1 = mul(w, add(0.40000972f, mul(w, 0.24279079f)));
    float t2 = mul(z, add(0.6666666f, mul(w, 0.28498787f)));
    float r = add(t2, t1);
    float half = mul(mul(0.5f, f), f);
    float y = add(mul(s, add(half, r)), mul(k, 9.058001e-6f));
    return add(add(sub(y, half), f), mul(k, 0.6931381f));
}

// Sine and cosine of `v` turns, v in [0, 1).
__device__ __forceinline__ void defined_sin_cos(float v, float& sine, float& cosine) {
    int q = __float2int_rz(add(mul(4.0f, v), 0.5f));
    float x = mul(sub(mul(4.0f, v), __int2float_rn(q)), 1.57079637f);
    float z = mul(x, x);
    float ps = add(-1.984127e-4f, mul(z, 2.7557319e-6f));
    ps = add(-1.6666667e-1f, mul(z, add(8.333333e-3f, mul(z, ps))));
    float s = add(x, mul(mul(x, z), ps));
    float pc = add(-1.3888889e-3f, mul(z, 2.4801587e-5f));
    pc = add(4.1666668e-2f, mul(z, pc));
    float c = add(sub(1.0f, mul(0.5f, z)), mul(mul(z, z), pc));
    bool odd = q & 1;
    sine = odd ? c : s;
    cosine = odd ? s : c;
    if (q & 2) sine = -sine;
    if ((q + 1) & 2) cosine = -cosine;
}

// Two standard normals from two words.
__device__ __forceinline__ void box_muller(u32 a, u32 b, float& first, float& second) {
    float u = mul(add(__uint2float_rn(a >> 9), 0.5f), 1.0f / 8388608.0f);
    float v = mul(__uint2float_rn(b >> 9), 1.0f / 8388608.0f);
    float r = __fsqrt_rn(mul(-2.0f, defined_ln(u)));
    float s, c;
    defined_sin_cos(v, s, c);
    first = mul(r, c);
    second = mul(r, s);
}

// Normals number 4·block .. 4·block + 3 of a stream.
__device__ __forceinline__ void four_normals(const Stream& at, u64 block, float (&v)[4]) {
    Four words = philox(at.seed, at.stream, block);
    box_muller(words.w[0], words.w[1], v[0], v[1]);
    box_muller(words.w[2], words.w[3], v[2], v[3]);
}
