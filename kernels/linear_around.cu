// What `src/ops/linear.rs` does beside products: the adapters' factors put side by side and taken apart again, the
// gradients of the bias and of the gate, dz.
#include "common/elementwise.cuh"
#include "common/linear.cuh"

// linear_stack: to[r, c] = from[r, c] in to's dtype, 0 where from has no such row or column
//   An adapter's factor becomes its rows (A) or its columns (B) of the one that all adapters share; ranks are rounded
//   up.
// Shapes: from [rows, columns] of either dtype; to: from value `at` on a window of n values, rows of `width` that are
//   ld apart.
// Layout: values aligned to themselves; they do not overlap.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 6 (4, 8) bytes for each value; bound by latency: factors are small.
// Traffic: where a window's rows begin on no 32 bytes its sectors are shared, by rows and by neighbours; a cache has
//   them.
// Idea: one thread per value, neighbours along a row.
template <class T>
__device__ __forceinline__ void stack(const Floats& from, T* to, int rows, int columns, int n, int width, int ld) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        int r = i / width, c = i % width;
        store(to + (i64)r * ld + c, r < rows && c < columns ? from[(i64)r * columns + c] : 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    linear_stack_f32(const Floats from, float* to, i64 at, int rows, int columns, int n, int width, int ld) {
    stack(from, to + at, rows, columns, n, width, ld);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_stack_bf16(const Floats from, bf16* to, i64 at, int rows, int columns, int n, int width, int ld) {
    stack(from, to + at, rows, columns, n, width, ld);
}

// linear_bwd_unstack: grad[r, c] = Σ over parts of from[part][r, c], added to grad where accumulate ≠ 0
// Shapes: grad [n] f32, rows of `columns`; from: from value `first` on a window of each of `parts` arrays, ld values
//   from row to row, `apart` values from part to part.
// Layout: values aligned to themselves; they do not overlap.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: parts + 1 (2) values moved for each of grad's; bound by bandwidth.
// Traffic: where a window's rows begin on no 32 bytes its sectors are shared, by rows and by neighbours; a cache has
//   them.
// Idea: linear_stack's way back, in the order of the parts.
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_unstack_f32(const float* from, i64 first, float* grad, int n, int columns, int ld, i64 apart, int parts,
                           int accumulate) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const float* at = from + first + (i64)(i / columns) * ld + i % columns;
        float sum = 0.0f;
        for (int part = 0; part < parts; part++) sum += at[part * apart];
        grad[i] = accumulate ? grad[i] + sum : sum;
    }
}

// linear_bwd_gate, linear_bwd_gate_wide: dz = gate ⊙ dy
// Shapes: dy, dz [rows, d], of `tokens` a sample; tables: where a token's gate stands, chunk `chunk` of d values. wide:
//   dy is f32 where dz is bf16.
// Layout: contiguous; four values at a time where d is a multiple of them and all are aligned to them; no overlaps.
// Grid: x ⌈rows/32⌉, y ⌈d/1024⌉; blocks of 256.
// Cost: 2 values moved for each of dz's and 1/32 of f32 from the tables; bound by bandwidth.
// Traffic: a gate is read again for every 32 rows, from a cache: much beside bf16 rows where few of them share one.
// Idea: a thread keeps its columns' gate while the rows it walks down read the same one.
template <int N, class T, class In>
__device__ __forceinline__ void gate_columns(const In* dy, const Tables& tables, T* dz, int rows, int tokens, int d,
                                             int chunk, int c) {
    const float* kept = nullptr;
    float g[N];
    int end = least(blockIdx.x * 32 + 32, rows);
    for (int row = blockIdx.x * 32; row < end; row++) {
        const float* from = tables.chunk(row / tokens, row % tokens, d, chunk) + c;
        if (from != kept) {
            kept = from;
            if constexpr (N == 4) {
                if (aligned(from))
                    load_four(from, g);
                else
                    for (int k = 0; k < N; k++) g[k] = from[k];
            } else {
                g[0] = *from;
            }
        }
        float v[N];
        i64 at = (i64)row * d + c;
        if constexpr (N == 4)
            load_four(dy + at, v);
        else
            v[0] = load(dy + at);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] *= g[k];
        if constexpr (N == 4)
            store_four(dz + at, v);
        else
            store(dz + at, v[0]);
    }
}
template <class T, class In>
__device__ __forceinline__ void gate(const In* dy, const Tables& tables, T* dz, int rows, int tokens, int d,
                                     int chunk) {
    int c = blockIdx.y * 1024 + threadIdx.x * 4;
    if (d % 4 == 0 && aligned<4 * sizeof(In)>(dy) && aligned<4 * sizeof(T)>(dz)) {
        if (c < d) gate_columns<4>(dy, tables, dz, rows, tokens, d, chunk, c);
    } else {
        int end = least(blockIdx.y * 1024 + 1024, d);
        for (int one = blockIdx.y * 1024 + threadIdx.x; one < end; one += 256)
            gate_columns<1>(dy, tables, dz, rows, tokens, d, chunk, one);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_gate_f32(const float* dy, const Tables tables, float* dz, int rows, int tokens, int d, int chunk) {
    gate(dy, tables, dz, rows, tokens, d, chunk);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_gate_bf16(const bf16* dy, const Tables tables, bf16* dz, int rows, int tokens, int d, int chunk) {
    gate(dy, tables, dz, rows, tokens, d, chunk);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_gate_wide_bf16(const float* dy, const Tables tables, bf16* dz, int rows, int tokens, int d, int chunk) {
    gate(dy, tables, dz, rows, tokens, d, chunk);
}

// linear_bwd_table, linear_bwd_table_wide: dgate = Σ dy⊙z, per table row over the tokens that read it
// Shapes: dy, z [batch·tokens, d], wide: dy f32 where z is bf16; row_of [batch]: each sample's table row; dtable
//   [rows, width] f32, of which chunk `chunk` is written, or added to where accumulate ≠ 0. begin .. end: the tokens
//   that read this table. The other columns are left alone: to be zeroed by who begins the table's gradient.
// Layout: row-major, contiguous, values aligned to themselves; nothing overlaps.
// Grid: x ⌈d/32⌉, y the table's rows; blocks of 256.
// Cost: 2·d values read per token; 2·d FLOPs; bound by bandwidth.
// Traffic: where rows begin on no 32 bytes, the sectors at a block's edges are its neighbour's too; a cache has them.
// Idea: 8 warps take every eighth token of 32 columns and meet in shared memory: coalesced, no atomics, fixed order.
template <class T, class In>
__device__ __forceinline__ void gate_table(const In* dy, const T* z, const int* row_of, float* dtable, int batch,
                                           int tokens, int begin, int end, int d, int width, int chunk,
                                           int accumulate) {
    __shared__ float sums[8][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, c = blockIdx.x * 32 + lane, row = blockIdx.y;
    float sum = 0.0f;
    for (int b = 0; c < d && b < batch; b++) {
        if (row_of[b] != row) continue;
#pragma unroll 4
        for (int t = begin + warp; t < end; t += 8) {
            i64 at = ((i64)b * tokens + t) * d + c;
            sum += load(dy + at) * load(z + at);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < d) {
#pragma unroll
        for (int i = 1; i < 8; i++) sum += sums[i][lane];
        float* to = dtable + (i64)row * width + (i64)chunk * d + c;
        *to = accumulate ? *to + sum : sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_table_f32(const float* dy, const float* z, const int* row_of, float* dtable, int batch, int tokens,
                         int begin, int end, int d, int width, int chunk, int accumulate) {
    gate_table(dy, z, row_of, dtable, batch, tokens, begin, end, d, width, chunk, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_table_bf16(const bf16* dy, const bf16* z, const int* row_of, float* dtable, int batch, int tokens,
                          int begin, int end, int d, int width, int chunk, int accumulate) {
    gate_table(dy, z, row_of, dtable, batch, tokens, begin, end, d, width, chunk, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_table_wide_bf16(const float* dy, const bf16* z, const int* row_of, float* dtable, int batch, int tokens,
                               int begin, int end, int d, int width, int chunk, int accumulate) {
    gate_table(dy, z, row_of, dtable, batch, tokens, begin, end, d, width, chunk, accumulate);
}

// linear_bwd_db: db = Σ dy over its rows, added to db where accumulate ≠ 0
// Shapes: dy [rows, n], ld values from row to row; db [n] f32.
// Layout: values aligned to themselves; they do not overlap.
// Grid: ⌈n/32⌉ blocks of 256.
// Cost: rows·n values read, as many additions; bound by bandwidth where n fills the card, else by latency.
// Traffic: where rows begin on no 32 bytes, the sectors at a block's edges are its neighbour's too; a cache has them.
// Idea: 8 warps take every eighth row of 32 columns and meet in shared memory: coalesced, no atomics, fixed order.
template <class T>
__device__ __forceinline__ void column_sums(const T* __restrict__ dy, float* __restrict__ db, int rows, int n, int ld,
                                            int accumulate) {
    __shared__ float sums[8][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < n) {
#pragma unroll 4
        for (int row = warp; row < rows; row += 8) sum += load(dy + (i64)row * ld + column);
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < n) {
#pragma unroll
        for (int i = 1; i < 8; i++) sum += sums[i][lane];
        db[column] = accumulate ? db[column] + sum : sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_db_f32(const float* dy, float* db, int rows, int n, int ld, int accumulate) {
    column_sums(dy, db, rows, n, ld, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_db_bf16(const bf16* dy, float* db, int rows, int n, int ld, int accumulate) {
    column_sums(dy, db, rows, n, ld, accumulate);
}
