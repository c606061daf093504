// Per-head RMSNorm of queries or keys, then rotary embedding: the CUDA side of src/ops/qk_norm_rope.rs.
#include "common/reduce.cuh"
#include "common/rope.cuh"

// Values of a head that a lane may hold, and of a head: 32 lanes of them.
constexpr int MOST = 8, WIDEST = 256;

// What a launch is given: `all` heads of a token (batch·heads), of which a warp takes `run` at a time.
struct Heads {
    int all, heads, tokens, pairs, run;

    // Where the j-th head of token t begins: samples in order, then heads.
    __device__ __forceinline__ i64 begin(int t, int j) const {
        return (((i64)(j / heads) * tokens + t) * heads + j % heads) * (2 * pairs);
    }
};

// COUNT neighbouring f32, aligned to the whole of them or to 16 bytes.
template <int COUNT> __device__ __forceinline__ void take(const float* p, float (&v)[COUNT]) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (int k = 0; k < COUNT; k += 4) {
            float4 four = *reinterpret_cast<const float4*>(p + k);
            v[k] = four.x, v[k + 1] = four.y, v[k + 2] = four.z, v[k + 3] = four.w;
        }
    } else if constexpr (COUNT == 2) {
        float2 two = *reinterpret_cast<const float2*>(p);
        v[0] = two.x, v[1] = two.y;
    } else {
        v[0] = *p;
    }
}

// A piece of a head as f32: 16 bytes, or a pair.
template <int W, class T> __device__ __forceinline__ void read(const T* p, float (&v)[W]) {
    if constexpr (W == Piece<T>::N) {
        load_piece(p, v);
    } else if constexpr (sizeof(T) == 4) {
        take(reinterpret_cast<const float*>(p), v);
    } else {
        u32 pair = *reinterpret_cast<const u32*>(p);
        v[0] = low(pair), v[1] = high(pair);
    }
}
template <int W, class T> __device__ __forceinline__ void write(T* p, const float (&v)[W]) {
    if constexpr (W == Piece<T>::N)
        store_piece(p, v);
    else if constexpr (sizeof(T) == 4)
        *reinterpret_cast<float2*>(p) = make_float2(v[0], v[1]);
    else
        *reinterpret_cast<u32*>(p) = pair_of(v[0], v[1]);
}

// How a warp stands over heads of one token, in pieces of W values: so many lanes to a head as it has pieces, up to the
// next power of two, and what every one of these heads is multiplied by.
template <int W> struct Warp {
    static constexpr int PIECES = MOST / W;
    int lanes = 1, pieces, lane, group, groups;
    float weight[PIECES][W], cosine[PIECES][W / 2], sine[PIECES][W / 2];

    __device__ __forceinline__ Warp(const float* w, const float* c, const float* s, int pairs) {
        pieces = 2 * pairs / W;
        while (lanes < pieces && lanes < 32) lanes *= 2;
        lane = threadIdx.x & (lanes - 1), group = (threadIdx.x & 31) / lanes, groups = 32 / lanes;
        each(true, [&](int i, int at) {
            take(w + at, weight[i]);
            take(c + at / 2, cosine[i]);
            take(s + at / 2, sine[i]);
        });
    }
    // Calls f(number of the piece, its first value) for this lane's pieces.
    template <class F> __device__ __forceinline__ void each(bool there, F f) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (there && lane + i * lanes < pieces) f(i, (lane + i * lanes) * W);
    }
    // The sum over a head's lanes, in each of them; every lane of the warp takes part.
    __device__ __forceinline__ float sum(float v) const {
        for (int o = lanes / 2; o; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
        return v;
    }
};

// Whether heads can be taken in pieces of 16 bytes.
template <class T, class... P> __device__ __forceinline__ bool whole(int pairs, const P*... p) {
    return 2 * pairs % Piece<T>::N == 0 && aligned(p...);
}

// qk_norm_rope_fwd: n = x/√(mean x² + 1e-6) ⊙ w per head, then every pair of n turned by its token's angle
// Shapes: x, y [batch, tokens, heads·2·pairs]; w [2·pairs] f32; cos, sin [tokens, pairs] f32. pairs ≤ 128.
// Layout: contiguous, aligned to a pair of values; 16 bytes at a time where a head is a multiple of them and all are
//   aligned to them; y may be x.
// Grid: ⌈tokens·⌈batch·heads/run⌉/8⌉ blocks of 256: a warp takes `run` of a token's heads, over all samples.
// Cost: 2 values moved per element, 8 bytes per pair and token of angles, 10 FLOPs; bound by bandwidth.
// Traffic: a head that is no multiple of 32 bytes shares a sector with the next; those of models are.
// Idea: a head is in registers, read once and written once, and narrow heads share a warp; weights and angles stay in
//   registers for all heads of a warp.
template <int W, class T>
__device__ __forceinline__ void forward(const T* x, const float* w, const float* cosine, const float* sine, T* y,
                                        const Heads& all) {
    int runs = (all.all + all.run - 1) / all.run, item = blockIdx.x * 8 + (threadIdx.x >> 5), t = item / runs;
    if (t >= all.tokens) return;
    int begin = item % runs * all.run, end = begin + all.run < all.all ? begin + all.run : all.all;
    const Warp<W> warp(w, cosine + t * all.pairs, sine + t * all.pairs, all.pairs);
    for (int first = begin; first < end; first += warp.groups) {
        bool there = first + warp.group < end;
        i64 head = all.begin(t, first + warp.group);
        float v[Warp<W>::PIECES][W], squares = 0.0f;
        warp.each(there, [&](int i, int at) {
            read(x + head + at, v[i]);
#pragma unroll
            for (int k = 0; k < W; k++) squares += v[i][k] * v[i][k];
        });
        float r = rrms(warp.sum(squares), all.pairs);
        warp.each(there, [&](int i, int at) {
#pragma unroll
            for (int k = 0; k < W; k += 2)
                norm_rotate(v[i][k], v[i][k + 1], r, warp.weight[i][k], warp.weight[i][k + 1], warp.cosine[i][k / 2],
                            warp.sine[i][k / 2]);
            write(y + head + at, v[i]);
        });
    }
}

extern "C" __global__ void __launch_bounds__(256)
    qk_norm_rope_fwd_f32(const float* x, const float* w, const float* cosine, const float* sine, float* y,
                         const Heads all) {
    if (whole<float>(all.pairs, x, w, y))
        forward<4>(x, w, cosine, sine, y, all);
    else
        forward<2>(x, w, cosine, sine, y, all);
}
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_rope_fwd_bf16(const bf16* x, const float* w, const float* cosine, const float* sine, bf16* y,
                          const Heads all) {
    if (whole<bf16>(all.pairs, x, w, y))
        forward<8>(x, w, cosine, sine, y, all);
    else
        forward<2>(x, w, cosine, sine, y, all);
}

// Where column c of a warp's sums stands: where a lane writes 8 neighbours, the first and the last 4 of each 8 apart
// and 16 banks apart, so that neither its writes nor reads in order meet.
template <int W> __device__ __forceinline__ int place(int c) {
    return W == 8 ? (c >> 3) * 4 + (c & 3) + ((c >> 2) & 1) * (WIDEST / 2 + 16) : c;
}

// qk_norm_rope_bwd: with u = dy turned back and g = u ⊙ w: dx = r·(g − x̂·mean(g·x̂)), x̂ = x·r, r = 1/rms, added where
//   accumulate ≠ 0; partial[block] = Σ u·x̂ over the block's heads
// Shapes: x, dy, dx as qk_norm_rope_fwd's; dx may be null: not wanted; partial [blocks, 2·pairs] f32, or null.
// Layout: as qk_norm_rope_fwd's, partial aligned to a pair; dx may be dy where accumulate = 0.
// Grid: as qk_norm_rope_fwd's; the partial sums, and the bits of dw, follow from `run`: the caller fixes it by the
//   shape.
// Cost: 3 values moved per element (4 accumulating), 20 FLOPs; bound by bandwidth.
// Traffic: a head that is no multiple of 32 bytes shares a sector with the next; those of models are.
// Idea: one pass for both gradients; a lane keeps its columns of dw in registers over all its heads.
template <int W, class T>
__device__ __forceinline__ void backward(const T* x, const float* w, const float* cosine, const float* sine,
                                         const T* dy, T* dx, float* partial, const Heads& all, int accumulate,
                                         float (&sums)[8][WIDEST + 32]) {
    constexpr int PIECES = Warp<W>::PIECES;
    int runs = (all.all + all.run - 1) / all.run, number = threadIdx.x >> 5, item = blockIdx.x * 8 + number;
    // A warp beyond the last token has no heads, but meets the others at the end.
    int t = item / runs < all.tokens ? item / runs : 0, begin = item % runs * all.run;
    int end = item / runs >= all.tokens ? begin : begin + all.run < all.all ? begin + all.run : all.all;
    const Warp<W> warp(w, cosine + t * all.pairs, sine + t * all.pairs, all.pairs);
    float acc[PIECES][W] = {};
    for (int first = begin; first < end; first += warp.groups) {
        bool there = first + warp.group < end;
        i64 head = all.begin(t, first + warp.group);
        float v[PIECES][W], u[PIECES][W], squares = 0.0f, along = 0.0f;
        warp.each(there, [&](int i, int at) {
            read(x + head + at, v[i]);
            read(dy + head + at, u[i]);
#pragma unroll
            for (int k = 0; k < W; k++) squares += v[i][k] * v[i][k];
        });
        float r = rrms(warp.sum(squares), all.pairs);
        warp.each(there, [&](int i, int) {
#pragma unroll
            for (int k = 0; k < W; k += 2) {
                float a = u[i][k], b = u[i][k + 1], c = warp.cosine[i][k / 2], s = warp.sine[i][k / 2];
                u[i][k] = a * c + b * s;
                u[i][k + 1] = b * c - a * s;
            }
#pragma unroll
            for (int k = 0; k < W; k++) {
                v[i][k] *= r;
                acc[i][k] += u[i][k] * v[i][k];
                u[i][k] *= warp.weight[i][k];
                along += u[i][k] * v[i][k];
            }
        });
        along = warp.sum(along) / (float)(2 * all.pairs);
        warp.each(there && dx, [&](int i, int at) {
            float old[W];
            if (accumulate) read(dx + head + at, old);
#pragma unroll
            for (int k = 0; k < W; k++) {
                u[i][k] = r * (u[i][k] - v[i][k] * along);
                if (accumulate) u[i][k] += old[k];
            }
            write(dx + head + at, u[i]);
        });
    }
    if (!partial) return;
#pragma unroll
    for (int i = 0; i < PIECES; i++)
#pragma unroll
        for (int k = 0; k < W; k++)
            for (int o = 16; o >= warp.lanes; o /= 2) acc[i][k] += __shfl_xor_sync(0xffffffffu, acc[i][k], o);
    warp.each(warp.group == 0, [&](int i, int at) {
#pragma unroll
        for (int k = 0; k < W; k += W < 4 ? W : 4) {
            float* to = &sums[number][place<W>(at + k)];
            if constexpr (W == 2)
                *reinterpret_cast<float2*>(to) = make_float2(acc[i][0], acc[i][1]);
            else
                *reinterpret_cast<float4*>(to) = make_float4(acc[i][k], acc[i][k + 1], acc[i][k + 2], acc[i][k + 3]);
        }
    });
    __syncthreads();
    for (int c = threadIdx.x; c < 2 * all.pairs; c += 256) {
        float sum = sums[0][place<W>(c)];
        for (int k = 1; k < 8; k++) sum += sums[k][place<W>(c)];
        partial[(i64)blockIdx.x * (2 * all.pairs) + c] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    qk_norm_rope_bwd_f32(const float* x, const float* w, const float* cosine, const float* sine, const float* dy,
                         float* dx, float* partial, const Heads all, int accumulate) {
    __shared__ __align__(16) float sums[8][WIDEST + 32];
    if (whole<float>(all.pairs, x, w, dy, dx))
        backward<4>(x, w, cosine, sine, dy, dx, partial, all, accumulate, sums);
    else
        backward<2>(x, w, cosine, sine, dy, dx, partial, all, accumulate, sums);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    qk_norm_rope_bwd_bf16(const bf16* x, const float* w, const float* cosine, const float* sine, const bf16* dy,
                          bf16* dx, float* partial, const Heads all, int accumulate) {
    __shared__ __align__(16) float sums[8][WIDEST + 32];
    if (whole<bf16>(all.pairs, x, w, dy, dx))
        backward<8>(x, w, cosine, sine, dy, dx, partial, all, accumulate, sums);
    else
        backward<2>(x, w, cosine, sine, dy, dx, partial, all, accumulate, sums);
}
