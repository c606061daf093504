// Tiles of f32 products (FFMA, never tf32): how they come to shared memory, how they lie there, the one loop over k.
#pragma once
#include "common/copy.cuh"
#include "common/linear.cuh"

constexpr int DEPTH = 16; // k of a step

// Tiles are [16][SIDE] with 4 values between depths: 4 rows by 8 depths, which a warp writes, and 32 rows of one depth
// lie in 32 different banks.
template <int SIDE> using Side = float[2][DEPTH * (SIDE + 4)];

// SIDE (m or n, from `first`, of `size`) by 16 (k) values of one operand, SIDE/16 per thread, zero beyond the edges and
// where `row_of`, the row of the matrix that a row as it lies in memory stands for, is −1. A warp reads 32 bytes of
// each of 4 rows where they are contiguous along k, else 128 bytes of one.
template <int CONTIGUOUS, int SIDE, class M, class Map>
__device__ __forceinline__ void fetch(float* tile, const M& matrix, int first, int size, int k0, int k, Map row_of) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 to = shared_address(tile);
// Not unrolled wholly: the compiler would keep 16 addresses in registers.
#pragma unroll 2
    for (int i = 0; i < SIDE / 16; i++) {
        int row, depth;
        if (CONTIGUOUS == ALONG_K)
            row = (i >> 1) * 32 + warp * 4 + (lane >> 3), depth = (i & 1) * 8 + (lane & 7);
        else
            row = threadIdx.x % SIDE, depth = threadIdx.x / SIDE + i * (256 / SIDE);
        bool inside = first + row < size && k0 + depth < k;
        int at_row = -1, at_column = CONTIGUOUS == ALONG_K ? k0 + depth : first + row;
        if (inside) at_row = row_of(CONTIGUOUS == ALONG_K ? first + row : k0 + depth);
        inside = at_row >= 0;
        const float* at = inside ? matrix.at(at_row, at_column) : matrix.first;
        copy4(to + (depth * (SIDE + 4) + row) * 4, at, inside ? 4 : 0);
    }
}

// A thread's share of SIDE values of one depth: runs of up to 4, 64 apart.
template <int SIDE> __device__ __forceinline__ void share(const float* from, int thread, float (&v)[SIDE / 16]) {
    constexpr int RUN = SIDE < 64 ? SIDE / 16 : 4;
#pragma unroll
    for (int h = 0; h < SIDE / 16; h += RUN) {
        float run[RUN];
        load_all(from + h * 16 + thread * RUN, run);
#pragma unroll
        for (int j = 0; j < RUN; j++) v[h + j] = run[j];
    }
}

// acc += A·B over `steps` of k, in one order whatever the block: `fetch_both` is called with a step and its buffer.
template <int M, int N, class Fetch>
__device__ __forceinline__ void multiply(float (&acc)[M / 16][N / 16], const Side<M>& a, const Side<N>& b, int steps,
                                         Fetch fetch_both) {
    int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    if (steps > 0) fetch_both(0, 0);
    copies_commit();
    for (int step = 0; step < steps; step++) {
        copies_wait<0>();
        __syncthreads();
        // The buffer this overwrites was last read in the step before, which all have left.
        if (step + 1 < steps) fetch_both(step + 1, (step + 1) & 1);
        copies_commit();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float va[M / 16], vb[N / 16];
            share<M>(a[step & 1] + k * (M + 4), ty, va);
            share<N>(b[step & 1] + k * (N + 4), tx, vb);
#pragma unroll
            for (int i = 0; i < M / 16; i++)
#pragma unroll
                for (int j = 0; j < N / 16; j++) acc[i][j] = fmaf(va[i], vb[j], acc[i][j]);
        }
    }
}
