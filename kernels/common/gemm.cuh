// Tiles of bf16 products on tensor cores: how they come to shared memory, how they lie there, the one loop over k.
#pragma once
#include "common/copy.cuh"
#include "common/linear.cuh"
#include "common/mma.cuh"

constexpr int DEPTH = 32, STAGES = 4; // k of a step; steps that are in shared memory at once

// M×N outputs of a block, by WARPS_M×WARPS_N warps.
template <int M_, int N_, int WARPS_M, int WARPS_N> struct Shape {
    static constexpr int M = M_, N = N_, THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int WM = M / WARPS_M, WN = N / WARPS_N; // a warp's outputs
    static constexpr int OPERAND = M * DEPTH * 2, STAGE = OPERAND + N * DEPTH * 2; // bytes
    static __device__ __forceinline__ int warp_m() { return (threadIdx.x >> 5) % WARPS_M * WM; }
    static __device__ __forceinline__ int warp_n() { return (threadIdx.x >> 5) / WARPS_M * WN; }
};

// Where 16-byte piece `piece` of row `row` of a tile lies, SIDE its m or n. Rows are 64 bytes (contiguous along k: SIDE
// rows of 4 pieces) or 2·SIDE (across: 32 rows); the pieces are swapped so that 8 rows at one column hit 8 different
// bank groups.
template <int CONTIGUOUS, int SIDE> __device__ __forceinline__ u32 place(int row, int piece) {
    if (CONTIGUOUS == ALONG_K) return row * 64 + ((piece ^ ((row >> 1) & 3)) << 4);
    return row * (2 * SIDE) + ((piece ^ (row & 7)) << 4);
}

// Eight neighbours of which the first `count` are there, the rest zero; any alignment.
__device__ __forceinline__ Bytes16 gather(const bf16* from, int count) {
    u32 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? from[i].bits : 0;
    return {v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16};
}

// One stage of one operand: SIDE (m or n, from `first`, of `size`) by 32 (k, from `k0`), zero beyond the edges and
// where `row_of`, the row of the matrix that a row as it lies in memory stands for, is −1. WHOLE: rows begin on 16
// bytes.
template <class S, int CONTIGUOUS, int SIDE, bool WHOLE, class M, class Map>
__device__ __forceinline__ void fetch(u32 to, const M& matrix, int first, int size, int k0, int k, Map row_of) {
    constexpr int PIECES = CONTIGUOUS == ALONG_K ? 4 : SIDE / 8; // of a row
#pragma unroll
    for (int i = 0; i < SIDE * 4 / S::THREADS; i++) {
        int piece = threadIdx.x + i * S::THREADS, row = piece / PIECES, column = piece % PIECES;
        int at_row, at_column, bytes;
        if (CONTIGUOUS == ALONG_K) {
            at_row = first + row < size ? row_of(first + row) : -1, at_column = k0 + column * 8;
            bytes = clamp(2 * (k - at_column), 16);
        } else {
            at_row = k0 + row < k ? row_of(k0 + row) : -1, at_column = first + column * 8;
            bytes = clamp(2 * (size - at_column), 16);
        }
        bytes = at_row < 0 ? 0 : bytes;
        const bf16* at = bytes ? matrix.at(at_row, at_column) : matrix.first;
        u32 there = to + place<CONTIGUOUS, SIDE>(row, column);
        if (WHOLE)
            copy16(there, at, bytes);
        else
            put16(there, gather(at, bytes >> 1));
    }
}

// The 16×16 fragment of A at row `m`, depth `k` of a stage.
template <int CONTIGUOUS, int SIDE> __device__ __forceinline__ void load_a(u32 (&r)[4], u32 tile, int m, int k) {
    int lane = threadIdx.x & 31;
    if (CONTIGUOUS == ALONG_K)
        load_matrices(r, tile + place<ALONG_K, SIDE>(m + (lane & 15), (k >> 3) + (lane >> 4)));
    else
        load_matrices_transposed(
            r, tile + place<ACROSS_K, SIDE>(k + (lane & 7) + ((lane >> 4) << 3), (m >> 3) + ((lane >> 3) & 1)));
}

// Two 16×8 fragments of B at columns `n` and n + 8: r[0], r[1] and r[2], r[3].
template <int CONTIGUOUS, int SIDE> __device__ __forceinline__ void load_b(u32 (&r)[4], u32 tile, int n, int k) {
    int lane = threadIdx.x & 31;
    if (CONTIGUOUS == ALONG_K)
        load_matrices(
            r, tile + place<ALONG_K, SIDE>(n + (lane & 7) + ((lane >> 4) << 3), (k >> 3) + ((lane >> 3) & 1)));
    else
        load_matrices_transposed(r, tile + place<ACROSS_K, SIDE>(k + (lane & 15), (n >> 3) + (lane >> 4)));
}

// acc += A·B over `steps` of k, in one order whatever the block: `fetch` is called with a step and where it goes in
// shared memory, A's part and then B's. Of the warp's columns the first 16·`groups` are computed.
template <class S, int A_ALONG, int B_ALONG, class Fetch>
__device__ __forceinline__ void multiply(float (&acc)[S::WM / 16][S::WN / 8][4], u32 base, int steps, int groups,
                                         Fetch fetch) {
    constexpr int MS = S::WM / 16, NS = S::WN / 16;
    auto fetch_stage = [&](int step) {
        if (step < steps) fetch(step, base + step % STAGES * S::STAGE);
        copies_commit(); // An empty group where there is nothing left, so that counting stays simple.
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fetch_stage(s);
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        // The stage this overwrites was last read in the step before, which all have left.
        fetch_stage(step + STAGES - 1);
        u32 tile = base + step % STAGES * S::STAGE;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            u32 fa[MS][4], fb[NS][4];
#pragma unroll
            for (int j = 0; j < NS; j++)
                if (j < groups) load_b<B_ALONG, S::N>(fb[j], tile + S::OPERAND, S::warp_n() + j * 16, k);
#pragma unroll
            for (int i = 0; i < MS; i++) load_a<A_ALONG, S::M>(fa[i], tile, S::warp_m() + i * 16, k);
#pragma unroll
            for (int i = 0; i < MS; i++)
#pragma unroll
                for (int j = 0; j < 2 * NS; j++)
                    if (j >> 1 < groups) mma(acc[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
        }
    }
}

// Calls f(row, column, values[2]) for a thread's outputs of the tile at m0, n0, its first 16·`groups` columns.
template <class S, class F>
__device__ __forceinline__ void each_pair(float (&acc)[S::WM / 16][S::WN / 8][4], int m0, int n0, int groups, F f) {
    int lane = threadIdx.x & 31;
    int row = m0 + S::warp_m() + (lane >> 2), column = n0 + S::warp_n() + (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < S::WM / 16; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int j = 0; j < S::WN / 8; j++)
                if (j >> 1 < groups) {
                    float v[2] = {acc[i][j][2 * h], acc[i][j][2 * h + 1]};
                    f(row + i * 16 + h * 8, column + j * 8, v);
                }
}
