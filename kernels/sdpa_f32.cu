// Products of `src/ops/sdpa.rs` in true f32 (FFMA, never tf32).
#include "common/gemm_f32.cuh"
#include "common/sdpa.cuh"

constexpr int TILE_M = 128, TILE_N = 64;

// sdpa_fwd_scores, sdpa_fwd_values: as sdpa.cu's, in f32 throughout
// Shapes: as sdpa_fwd_scores' and sdpa_fwd_values' there.
// Layout: aligned to 4 bytes; nothing overlaps.
// Grid: x ⌈m/128⌉·⌈n/64⌉, y heads; blocks of 256.
// Cost: 2·m·n·k FLOPs per head, 4 bytes of each value; bound by the FMA units from a hd of 64 on.
// Traffic: as sdpa_fwd_scores' there: operands are read again for every tile, from the L2 cache.
// Idea: as there; 8×4 outputs per thread, and the loop over k of the linear layer.
template <int B_ALONG>
__device__ __forceinline__ void product(const float* a, const float* b, float* c, const Heads& heads,
                                        const Problem& p) {
    __shared__ __align__(16) Side<TILE_M> tile_a;
    __shared__ __align__(16) Side<TILE_N> tile_b;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + TILE_M - 1) / TILE_M, (p.n + TILE_N - 1) / TILE_N, tile_row, tile_column);
    int m0 = tile_row * TILE_M, n0 = tile_column * TILE_N;
    a += heads.of(heads.a), b += heads.of(heads.b), c += heads.of(heads.c);
    auto fetch_both = [&](int step, int buffer) {
        int k0 = step * DEPTH;
        fetch<ALONG_K, TILE_M>(tile_a[buffer], Matrix<float>{a, p.lda}, m0, p.m, k0, p.k, Same());
        fetch<B_ALONG, TILE_N>(tile_b[buffer], Matrix<float>{b, p.ldb}, n0, p.n, k0, p.k, Same());
    };
    float acc[TILE_M / 16][TILE_N / 16] = {};
    multiply<TILE_M, TILE_N>(acc, tile_a, tile_b, (p.k + DEPTH - 1) / DEPTH, fetch_both);
    int row = m0 + (threadIdx.x >> 4) * 4, column = n0 + (threadIdx.x & 15) * 4;
    bool whole = p.ldc % 4 == 0 && aligned(c);
#pragma unroll
    for (int i = 0; i < TILE_M / 16; i++) {
        float v[4] = {acc[i][0], acc[i][1], acc[i][2], acc[i][3]};
        finish<4>(p, Floats{nullptr, 0}, c, Plain(), row + (i >> 2) * 64 + (i & 3), column, whole, v);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    sdpa_fwd_scores_f32(const float* q, const float* k, float* s, const Heads heads, const Problem p) {
    product<ALONG_K>(q, k, s, heads, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    sdpa_fwd_values_f32(const float* prob, const float* v, float* o, const Heads heads, const Problem p) {
    product<ACROSS_K>(prob, v, o, heads, p);
}
