// Matrix products of `src/ops/linear.rs` in true f32 (FFMA, never tf32): the layer's own, and the adapters' narrow
// ones.
#include "common/copy.cuh"
#include "common/linear.cuh"

constexpr int DEPTH = 16, TILE = 128; // k of a step; rows and columns of a tile
constexpr int NARROW_M = 64, NARROW_N = 32, CHUNK = 512; // the adapters' tile; packed rows of a block of bwd_lora_grad

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

// As linear.cu's: Σz² of each 16 columns of the tile's rows.
__device__ __forceinline__ void survey(NormRope<float>& e, const float (&acc)[8][8], const Floats& bias,
                                       const Problem& p, int n0, void* memory) {
    e.norms = (float*)memory;
    int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    __syncthreads(); // Another warp may still multiply what lies there.
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float add[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int at = n0 + tx * 4 + h * 64 + j;
            add[j] = bias.at && at < p.n ? bias[at] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float squares = 0.0f;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float z = acc[i][h * 4 + j] + add[j];
                squares += z * z;
            }
            squares = sum_of_four(squares);
            int row = ty * 4 + (i >> 2) * 64 + (i & 3);
            if ((tx & 3) == 0) *e.place(h * 4 + (tx >> 2), row) = squares;
        }
    }
    e.measure();
}

// linear_fwd_f32, linear_fwd_gelu_f32, linear_fwd_rope_f32, linear_fwd_resid_f32, linear_bwd_dx_f32, linear_bwd_dw_f32:
//   as linear.cu's, in f32 throughout
// Shapes: as linear_fwd's there.
// Layout: values aligned to 4 bytes, any lda, ldb, ldc, ldf; A and B may overlap each other, C may be resid, else
//   nothing.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: 2·m·n·k FLOPs, 4·(m·k + k·n + m·n) bytes; bound by the FMA units from k ≈ 100 on.
// Traffic: operands are read again for every tile, from the L2 cache, while the FMA units are what it waits for.
// Idea: 8×8 outputs per thread from 4+4 by 4+4 rows and columns 64 apart, so that reads of shared memory are 16 bytes
//   wide and without conflicts; two buffers, the next tile is copied past the registers. The adapters' part is further
//   steps of k in the tiles that have a row they act on.
template <int A_ALONG, int B_ALONG, class A, class B, class E>
__device__ __forceinline__ void product(const A& a, const B& b, const Floats& bias, float* c, E e,
                                        const Extra<float>& extra, const Problem& p) {
    __shared__ __align__(16) Side<TILE> tile_a, tile_b;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + TILE - 1) / TILE, tile_row, tile_column);
    int m0 = tile_row * TILE, n0 = tile_column * TILE;
    int steps = (p.k + DEPTH - 1) / DEPTH, more = 0;
    if (A_ALONG == ALONG_K) more = extra.depth(m0, least(m0 + TILE, p.m)) / DEPTH;
    auto fetch_both = [&](int step, int buffer) {
        if (A_ALONG == ACROSS_K || step < steps) {
            int k0 = step * DEPTH;
            fetch<A_ALONG, TILE>(tile_a[buffer], a, m0, p.m, k0, p.k, Same());
            fetch<B_ALONG, TILE>(tile_b[buffer], b, n0, p.n, k0, p.k, Same());
        } else {
            int k0 = (step - steps) * DEPTH, rank = extra.rank;
            Matrix<float> s{extra.s, rank}, f{extra.f, extra.ldf};
            fetch<A_ALONG, TILE>(tile_a[buffer], s, m0, p.m, k0, rank, Packed{extra.rows});
            fetch<B_ALONG, TILE>(tile_b[buffer], f, n0, p.n, k0, rank, Same());
        }
    };
    float acc[8][8] = {};
    multiply<TILE, TILE>(acc, tile_a, tile_b, steps + more, fetch_both);
    survey(e, acc, bias, p, n0, tile_a);
    int row = m0 + (threadIdx.x >> 4) * 4, column = n0 + (threadIdx.x & 15) * 4;
    bool whole = p.ldc % 4 == 0 && aligned(c, e.beside());
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float v[4] = {acc[i][h * 4], acc[i][h * 4 + 1], acc[i][h * 4 + 2], acc[i][h * 4 + 3]};
            finish<4>(p, bias, c, e, row + (i >> 2) * 64 + (i & 3), column + h * 64, whole, v);
        }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_f32(const Joined<float> a, const float* b, const Floats bias, float* c, const Extra<float> extra,
                   const Problem p) {
    product<ALONG_K, ALONG_K>(a, Matrix<float>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_gelu_f32(const Joined<float> a, const float* b, const Floats bias, float* c, const Gelu<float> e,
                        const Extra<float> extra, const Problem p) {
    product<ALONG_K, ALONG_K>(a, Matrix<float>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_rope_f32(const Joined<float> a, const float* b, const Floats bias, float* c, const NormRope<float> e,
                        const Extra<float> extra, const Problem p) {
    product<ALONG_K, ALONG_K>(a, Matrix<float>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_resid_f32(const Joined<float> a, const float* b, const Floats bias, float* c,
                         const Residual<float, float> e, const Extra<float> extra, const Problem p) {
    product<ALONG_K, ALONG_K>(a, Matrix<float>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dx_f32(const float* a, const float* b, const Floats bias, float* c, const Extra<float> extra,
                      const Problem p) {
    product<ALONG_K, ACROSS_K>(Matrix<float>{a, p.lda}, Matrix<float>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dw_f32(const float* a, const Joined<float> b, const Floats bias, float* c, const Extra<float> extra,
                      const Problem p) {
    product<ACROSS_K, ACROSS_K>(Matrix<float>{a, p.lda}, b, bias, c, Plain(), extra, p);
}

// linear_bwd_dx_gelu_f32: as linear.cu's, in f32 throughout
// Shapes: as linear_bwd_dx_gelu's there.
// Layout: as linear_fwd_f32's; C is not z.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: linear_bwd_dx_f32's, 4·m·n bytes and 20·m·n FLOPs.
// Traffic: as linear_fwd_f32's.
// Idea: as linear_bwd_dx_gelu's.
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dx_gelu_f32(const float* a, const float* b, const Floats bias, float* c, const Slope<float> e,
                           const Extra<float> extra, const Problem p) {
    product<ALONG_K, ACROSS_K>(Matrix<float>{a, p.lda}, Matrix<float>{b, p.ldb}, bias, c, e, extra, p);
}

// linear_fwd_lora_f32, linear_bwd_lora_f32: as linear_lora.cu's, in f32 throughout
// Shapes: as linear_fwd_lora's there.
// Layout: values aligned to 4 bytes, any lda, ldb; nothing overlaps.
// Grid: ⌈m/64⌉·⌈n/32⌉ blocks of 256.
// Cost: 2·m·n·k FLOPs, 4·(m·k + k·n + m·n) bytes; bound by the loads.
// Traffic: as linear_fwd_lora's: operands are read again for every tile, from the L2 cache.
// Idea: as linear_fwd_f32's, 4×2 outputs per thread.
template <int B_ALONG>
__device__ __forceinline__ void down(const Joined<float>& y, const float* __restrict__ f, float* c,
                                     const float* factor, const Rows& rows, int first, const Problem& p) {
    __shared__ __align__(16) Side<NARROW_M> tile_a;
    __shared__ __align__(16) Side<NARROW_N> tile_b;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + NARROW_M - 1) / NARROW_M, (p.n + NARROW_N - 1) / NARROW_N, tile_row, tile_column);
    int m0 = tile_row * NARROW_M, n0 = tile_column * NARROW_N;
    f += B_ALONG == ALONG_K ? (i64)first * p.ldb : first;
    auto fetch_both = [&](int step, int buffer) {
        int k0 = step * DEPTH;
        fetch<ALONG_K, NARROW_M>(tile_a[buffer], y, m0, p.m, k0, p.k, Unpacked{rows});
        fetch<B_ALONG, NARROW_N>(tile_b[buffer], Matrix<float>{f, p.ldb}, n0, p.n, k0, p.k, Same());
    };
    float acc[4][2] = {};
    multiply<NARROW_M, NARROW_N>(acc, tile_a, tile_b, (p.k + DEPTH - 1) / DEPTH, fetch_both);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = m0 + (threadIdx.x >> 4) * 4 + i, column = n0 + (threadIdx.x & 15) * 2;
        if (row < p.m && column < p.n) scaled(c + first, factor + first, rows, p, row, column, acc[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_lora_f32(const Joined<float> y, const float* f, float* c, const float* factor, const Rows rows,
                        int first, const Problem p) {
    down<ALONG_K>(y, f, c, factor, rows, first, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_lora_f32(const Joined<float> y, const float* f, float* c, const float* factor, const Rows rows,
                        int first, const Problem p) {
    down<ACROSS_K>(y, f, c, factor, rows, first, p);
}

// linear_bwd_lora_grad_f32: as linear_lora.cu's, in f32 throughout
// Shapes: as linear_bwd_lora_grad's there.
// Layout: values aligned to 4 bytes, any lda, ldb; nothing overlaps.
// Grid: x ⌈m/64⌉·⌈n/32⌉, y ⌈k/512⌉; blocks of 256.
// Cost: 2·m·n·k FLOPs, 4·(m·k + k·n) bytes and 4·m·n for each 512 of k; bound by the loads.
// Traffic: as linear_bwd_lora_grad's: operands are read again for every tile, from the L2 cache.
// Idea: as linear_bwd_lora_grad's.
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_lora_grad_f32(const Joined<float> y, const float* s, float* partial, const Rows rows, int first,
                             int across, const Problem p) {
    __shared__ __align__(16) Side<NARROW_M> tile_a;
    __shared__ __align__(16) Side<NARROW_N> tile_b;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + NARROW_M - 1) / NARROW_M, (p.n + NARROW_N - 1) / NARROW_N, tile_row, tile_column);
    int m0 = tile_row * NARROW_M, n0 = tile_column * NARROW_N;
    s += first;
    int begin = blockIdx.y * CHUNK, end = least(begin + CHUNK, p.k);
    auto fetch_both = [&](int step, int buffer) {
        int k0 = begin + step * DEPTH;
        fetch<ACROSS_K, NARROW_M>(tile_a[buffer], y, m0, p.m, k0, end, Unpacked{rows});
        fetch<ACROSS_K, NARROW_N>(tile_b[buffer], Matrix<float>{s, p.ldb}, n0, p.n, k0, end, Same());
    };
    float acc[4][2] = {};
    multiply<NARROW_M, NARROW_N>(acc, tile_a, tile_b, (end - begin + DEPTH - 1) / DEPTH, fetch_both);
    partial += (i64)blockIdx.y * p.m * p.n;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = m0 + (threadIdx.x >> 4) * 4 + i, column = n0 + (threadIdx.x & 15) * 2;
        if (row < p.m && column < p.n) keep_partial(partial, across, p, row, column, acc[i]);
    }
}
