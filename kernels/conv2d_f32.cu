// Convolution's product of `src/ops/conv2d.rs` in true f32 (FFMA, never tf32).
#include "common/conv2d.cuh"
#include "common/gemm_f32.cuh"

constexpr int TILE_M = 64, TILE_N = 128; // channels of y and positions of a tile

// conv2d_fwd: as conv2d.cu's, in f32 throughout
// Shapes: as conv2d_fwd's there, channels a multiple of 4.
// Layout: contiguous, aligned to 4 bytes. resid may be y, nothing else overlaps.
// Grid: x ⌈out/64⌉·⌈h'·w'/128⌉, y batch; blocks of 256.
// Cost: 2·batch·out·h'·w'·depth FLOPs, 4 bytes of w, x, resid and y; bound by the FMA units from 16 channels on.
// Traffic: a value of x is read by every window it is in and by every 64 channels of y, from the L2 cache but for the
//   first time.
// Idea: as conv2d.cu's, a value at a time; 4×8 outputs per thread, and the loop over k of the linear layer.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv2d_fwd_f32(const float* w, const float* x, const Floats bias, const float* resid, float* y, const Conv p) {
    __shared__ __align__(16) Side<TILE_M> tile_w;
    __shared__ __align__(16) Side<TILE_N> tile_x;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.out + TILE_M - 1) / TILE_M, (p.positions + TILE_N - 1) / TILE_N, tile_row, tile_column);
    int o0 = tile_row * TILE_M, first = tile_column * TILE_N;
    x += (i64)blockIdx.y * (p.high >> p.up) * (p.wide >> p.up) * p.channels;
    // Rows of the windows' tile as `fetch` has them: a warp reads 32 bytes of each of 4, 32 apart.
    constexpr int ROWS = TILE_N / 32;
    int row = (threadIdx.x >> 5) * 4 + ((threadIdx.x & 31) >> 3), depth = threadIdx.x & 7;
    Corner corners[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) corners[i] = corner(p, first + row + i * 32);
    Walk walk{0, 0, 0};
    walk.by(depth, p);
    auto fetch_both = [&](int step, int buffer) {
        Matrix<float> rows{w, p.depth};
        fetch<ALONG_K, TILE_M>(tile_w[buffer], rows, o0, p.out, step * DEPTH, p.depth, Same());
        u32 to = shared_address(tile_x[buffer]);
#pragma unroll
        for (int k = 0; k < DEPTH; k += 8) {
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                int at = walk.at(corners[i], p);
                u32 there = to + ((depth + k) * (TILE_N + 4) + row + i * 32) * 4;
                copy4(there, at < 0 ? x : x + at, at < 0 ? 0 : 4);
            }
            walk.by(8, p);
        }
    };
    float acc[TILE_M / 16][TILE_N / 16] = {};
    multiply<TILE_M, TILE_N>(acc, tile_w, tile_x, (p.depth + DEPTH - 1) / DEPTH, fetch_both);
    int o = o0 + (threadIdx.x >> 4) * 4, position = first + (threadIdx.x & 15) * 4;
    bool whole = p.positions % 4 == 0 && aligned(y, resid);
#pragma unroll
    for (int i = 0; i < TILE_M / 16; i++)
#pragma unroll
        for (int h = 0; h < TILE_N / 64; h++) {
            float v[4] = {acc[i][h * 4], acc[i][h * 4 + 1], acc[i][h * 4 + 2], acc[i][h * 4 + 3]};
            finish<4>(p, bias, resid, y, o + i, position + h * 64, whole, v);
        }
}
