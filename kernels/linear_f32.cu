// Matrix products of `src/ops/linear.rs` in true f32 (FFMA, never tf32): the layer's own, and the adapters' narrow
// ones.
#include "common/gemm_f32.cuh"

constexpr int TILE = 128; // rows and columns of a tile
constexpr int NARROW_M = 64, NARROW_N = 32, CHUNK = 512; // the adapters' tile; packed rows of a block of bwd_lora_grad

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
