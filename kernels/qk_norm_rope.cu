// Per-head RMSNorm of queries or keys, then rotary embedding: the CUDA side of src/ops/qk_norm_rope.rs.
#include "common/reduce.cuh"

constexpr float EPS = 1e-6f;
// Pairs of a head that a lane may hold: heads of up to 512.
constexpr int MOST = 8;

// Two neighbours of a head.
__device__ __forceinline__ float2 load_pair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ float2 load_pair(const bf16* p) {
    u32 v = *reinterpret_cast<const u32*>(p);
    return make_float2(low(v), high(v));
}
__device__ __forceinline__ void store_pair(float* p, float a, float b) { *reinterpret_cast<float2*>(p) = make_float2(a, b); }
__device__ __forceinline__ void store_pair(bf16* p, float a, float b) { *reinterpret_cast<u32*>(p) = pair_of(a, b); }

// 1/√(mean x² + ε) of a head of `pairs` pairs, from Σx² over the warp.
__device__ __forceinline__ float rrms(float squares, int pairs) { return rsqrtf(squares / (float)(2 * pairs) + EPS); }

// qk_norm_rope_fwd: n = x/√(mean x² + 1e-6) ⊙ w per head, then every pair of n turned by its token's angle
// Shapes: x, y [batch·tokens, heads·2·pairs]; w [2·pairs] f32; cos, sin [tokens, pairs] f32. pairs ≤ 256.
// Layout: contiguous, aligned to a pair of values; y may be x.
// Grid: any number of blocks of 256, a warp per head and turn; 8 per multiprocessor fill it.
// Cost: 2 values moved per element, angles and weights from cache, 10 FLOPs; bound by bandwidth.
// Idea: a warp holds a head in registers: read once, written once.
template <class T>
__device__ __forceinline__ void forward(const T* x, const float* __restrict__ w, const float* __restrict__ cosine,
                                        const float* __restrict__ sine, T* y, i64 heads_in_all, int heads, int tokens,
                                        int pairs) {
    int lane = threadIdx.x & 31;
    i64 step = (i64)gridDim.x * 8;
    for (i64 h = (i64)blockIdx.x * 8 + (threadIdx.x >> 5); h < heads_in_all; h += step) {
        int t = (int)(h / heads % tokens);
        float2 v[MOST];
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int p = lane + i * 32;
            if (p < pairs) {
                v[i] = load_pair(x + (h * pairs + p) * 2);
                squares += v[i].x * v[i].x + v[i].y * v[i].y;
            }
        }
        float r = rrms(warp_sum(squares), pairs);
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int p = lane + i * 32;
            if (p < pairs) {
                float2 by = load_pair(w + p * 2);
                float c = cosine[t * pairs + p], s = sine[t * pairs + p];
                float a = v[i].x * r * by.x, b = v[i].y * r * by.y;
                store_pair(y + (h * pairs + p) * 2, a * c - b * s, b * c + a * s);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    qk_norm_rope_fwd_f32(const float* x, const float* w, const float* cosine, const float* sine, float* y,
                         i64 heads_in_all, int heads, int tokens, int pairs) {
    forward(x, w, cosine, sine, y, heads_in_all, heads, tokens, pairs);
}
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_rope_fwd_bf16(const bf16* x, const float* w, const float* cosine, const float* sine, bf16* y,
                          i64 heads_in_all, int heads, int tokens, int pairs) {
    forward(x, w, cosine, sine, y, heads_in_all, heads, tokens, pairs);
}

// qk_norm_rope_bwd: with u = dy turned back and g = u ⊙ w: dx = r·(g − x̂·mean(g·x̂)), x̂ = x·r, r = 1/rms, added where
//   accumulate ≠ 0; partial[block] = Σ u·x̂ over the block's heads
// Shapes: x, dy, dx as qk_norm_rope_fwd's; dx may be null: not wanted; partial [blocks, 2·pairs] f32, or null.
// Layout: contiguous, aligned to a pair of values; dx may be dy where accumulate = 0.
// Grid: any number of blocks of 256; a block takes every gridDim-th eight heads, so that its partial sum, and the bits of
//   dw, follow from the grid: the caller fixes it by the shape.
// Cost: 3 values moved per element (4 accumulating), 20 FLOPs; bound by bandwidth.
// Idea: one pass for both gradients; a lane keeps its columns of dw in registers over all its heads.
template <class T>
__device__ __forceinline__ void backward(const T* x, const float* __restrict__ w, const float* __restrict__ cosine,
                                         const float* __restrict__ sine, const T* dy, T* dx, float* partial,
                                         i64 heads_in_all, int heads, int tokens, int pairs, int accumulate) {
    __shared__ float2 sums[8][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 step = (i64)gridDim.x * 8;
    float2 acc[MOST] = {};
    for (i64 h = (i64)blockIdx.x * 8 + warp; h < heads_in_all; h += step) {
        int t = (int)(h / heads % tokens);
        float2 v[MOST], u[MOST];
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int p = lane + i * 32;
            if (p < pairs) {
                v[i] = load_pair(x + (h * pairs + p) * 2);
                squares += v[i].x * v[i].x + v[i].y * v[i].y;
            }
        }
        float r = rrms(warp_sum(squares), pairs), along = 0.0f;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int p = lane + i * 32;
            if (p < pairs) {
                float2 d = load_pair(dy + (h * pairs + p) * 2), by = load_pair(w + p * 2);
                float c = cosine[t * pairs + p], s = sine[t * pairs + p];
                u[i] = make_float2(d.x * c + d.y * s, d.y * c - d.x * s);
                v[i] = make_float2(v[i].x * r, v[i].y * r);
                along += u[i].x * by.x * v[i].x + u[i].y * by.y * v[i].y;
                acc[i].x += u[i].x * v[i].x;
                acc[i].y += u[i].y * v[i].y;
            }
        }
        along = warp_sum(along) / (float)(2 * pairs);
        if (!dx) continue;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int p = lane + i * 32;
            if (p < pairs) {
                float2 by = load_pair(w + p * 2);
                float a = r * (u[i].x * by.x - v[i].x * along), b = r * (u[i].y * by.y - v[i].y * along);
                T* to = dx + (h * pairs + p) * 2;
                if (accumulate) {
                    float2 old = load_pair(to);
                    a += old.x, b += old.y;
                }
                store_pair(to, a, b);
            }
        }
    }
    if (!partial) return;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        if (i * 32 >= pairs) break;
        __syncthreads();
        sums[warp][lane] = acc[i];
        __syncthreads();
        int p = lane + i * 32;
        if (warp == 0 && p < pairs) {
            float2 sum = sums[0][lane];
            for (int k = 1; k < 8; k++) sum.x += sums[k][lane].x, sum.y += sums[k][lane].y;
            store_pair(partial + ((i64)blockIdx.x * pairs + p) * 2, sum.x, sum.y);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    qk_norm_rope_bwd_f32(const float* x, const float* w, const float* cosine, const float* sine, const float* dy,
                         float* dx, float* partial, i64 heads_in_all, int heads, int tokens, int pairs,
                         int accumulate) {
    backward(x, w, cosine, sine, dy, dx, partial, heads_in_all, heads, tokens, pairs, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_rope_bwd_bf16(const bf16* x, const float* w, const float* cosine, const float* sine, const bf16* dy,
                          bf16* dx, float* partial, i64 heads_in_all, int heads, int tokens, int pairs,
                          int accumulate) {
    backward(x, w, cosine, sine, dy, dx, partial, heads_in_all, heads, tokens, pairs, accumulate);
}
