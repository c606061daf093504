// The adapters of `src/ops/linear.rs`: their factors side by side, what a narrow product makes of the rows they act on,
// their gradients. The other half of their product is further steps of k in linear.cu.
#include "common/gemm.cuh"

using Narrow = Shape<64, 64, 4, 1>;
constexpr int CHUNK = 512; // packed rows of a block of bwd_lora_grad

// The 16 columns groups that a tile has.
__device__ __forceinline__ int groups_of(int n, int n0) { return least((n - n0 + 15) / 16, Narrow::N / 16); }

// linear_fwd_lora, linear_bwd_lora: C[m,n] = factor ∘ (y·F), y's rows those that adapters act on
//   fwd S = x·Aᵀ: F = A of all adapters [n,k]. bwd dS = dz·B: F = B of all of them [k,n].
// Shapes: y [rows, k], of which m are read, in one matrix or two as linear_fwd's x; of C [m, ldc], factor [samples,
//   ldc] and the adapters in F the n columns from `first` on, both multiples of 16; a factor is the adapter's scale
//   where it is in the sample's set, else 0.
// Layout: y, F aligned to 16 bytes with the columns of either part of y and ldb multiples of 8; C to 4 bytes with ldc
//   even; nothing overlaps.
// Grid: ⌈m/64⌉·⌈n/64⌉ blocks of 128.
// Cost: 2·m·n·k FLOPs, 2·(m·k + k·n + m·n) bytes; bound by bandwidth while n < 200.
// Traffic: F is read for every 64 rows and y for every 64 columns, from the L2 cache but for the first time.
// Idea: the main product's loop with a tile that is as narrow as the rank: of its 64 columns only the groups of 16 that
//   there are get multiplied. The sets are in the factors: one launch serves all samples.
template <int B_ALONG, bool WHOLE>
__device__ __forceinline__ void down(const Joined<bf16>& y, const bf16* __restrict__ f, bf16* c,
                                     const float* factor, const Rows& rows, int first, const Problem& p) {
    __shared__ __align__(128) u8 memory[STAGES * Narrow::STAGE];
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + Narrow::M - 1) / Narrow::M, (p.n + Narrow::N - 1) / Narrow::N, tile_row, tile_column);
    int m0 = tile_row * Narrow::M, n0 = tile_column * Narrow::N, groups = groups_of(p.n, n0);
    f += B_ALONG == ALONG_K ? (i64)first * p.ldb : first;
    auto fetch_both = [&](int step, u32 to) {
        int k0 = step * DEPTH;
        u32 second = to + Narrow::OPERAND;
        fetch<Narrow, ALONG_K, Narrow::M, WHOLE>(to, y, m0, p.m, k0, p.k, Unpacked{rows});
        fetch<Narrow, B_ALONG, Narrow::N, WHOLE>(second, Matrix<bf16>{f, p.ldb}, n0, p.n, k0, p.k, Same());
    };
    float acc[1][8][4] = {};
    multiply<Narrow, ALONG_K, B_ALONG>(acc, shared_address(memory), (p.k + DEPTH - 1) / DEPTH, groups, fetch_both);
    each_pair<Narrow>(acc, m0, n0, groups, [&](int row, int column, float(&v)[2]) {
        if (row < p.m) scaled(c + first, factor + first, rows, p, row, column, v);
    });
}

extern "C" __global__ void __launch_bounds__(128)
    linear_fwd_lora_bf16(const Joined<bf16> y, const bf16* f, bf16* c, const float* factor, const Rows rows, int first,
                         const Problem p) {
    down<ALONG_K, true>(y, f, c, factor, rows, first, p);
}
extern "C" __global__ void __launch_bounds__(128)
    linear_bwd_lora_bf16(const Joined<bf16> y, const bf16* f, bf16* c, const float* factor, const Rows rows, int first,
                         const Problem p) {
    down<ACROSS_K, true>(y, f, c, factor, rows, first, p);
}

// linear_fwd_lora_any, linear_bwd_lora_any: the same for rows that do not begin on 16 bytes
// Shapes: as linear_fwd_lora's.
// Layout: values aligned to themselves, any lda, ldb, of two parts of y the first a multiple of 8 wide; C to 4 bytes
//   with ldc even; nothing overlaps.
// Grid: ⌈m/64⌉·⌈n/64⌉ blocks of 128.
// Cost: as linear_fwd_lora's, but bound by the loads: eight of 2 bytes for each of 16.
// Traffic: as linear_fwd_lora's, and each of the eight loads touches the sectors that the other seven do, which the L1
//   cache has.
// Idea: as linear_fwd_any's.
extern "C" __global__ void __launch_bounds__(128)
    linear_fwd_lora_any_bf16(const Joined<bf16> y, const bf16* f, bf16* c, const float* factor, const Rows rows,
                             int first, const Problem p) {
    down<ALONG_K, false>(y, f, c, factor, rows, first, p);
}
extern "C" __global__ void __launch_bounds__(128)
    linear_bwd_lora_any_bf16(const Joined<bf16> y, const bf16* f, bf16* c, const float* factor, const Rows rows,
                             int first, const Problem p) {
    down<ACROSS_K, false>(y, f, c, factor, rows, first, p);
}

// linear_bwd_lora_grad: partial[part] = yᵀ·s over the part's 512 packed rows, f32
//   dA of all adapters: y = x, s = dS, stored across: [n,m]. dB: y = dz, s = S, stored [m,n].
// Shapes: y [rows, m], of which the k packed rows are read, in one matrix or two; of s [k, ldb] the n columns from
//   `first` on, both multiples of 16; partial [parts, m·n].
// Layout: y, s aligned to 16 bytes with the columns of either part of y and ldb multiples of 8; partial to 8 bytes;
//   nothing overlaps.
// Grid: x ⌈m/64⌉·⌈n/64⌉, y ⌈k/512⌉; blocks of 128.
// Cost: 2·m·n·k FLOPs, 2·(m·k + k·n) bytes and 4·m·n for each 512 of k; bound by bandwidth while n < 200.
// Traffic: s is read for every 64 of m and y for every 64 of n, from the L2 cache but for the first time.
// Idea: a model's adapters have few and narrow tiles: k is split over blocks, and linear_bwd_unstack adds the parts in
//   their order, without atomics. Both operands lie across k, and the loads that transpose take them so.
template <bool WHOLE>
__device__ __forceinline__ void grad(const Joined<bf16>& y, const bf16* __restrict__ s, float* partial,
                                     const Rows& rows, int across, const Problem& p) {
    __shared__ __align__(128) u8 memory[STAGES * Narrow::STAGE];
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + Narrow::M - 1) / Narrow::M, (p.n + Narrow::N - 1) / Narrow::N, tile_row, tile_column);
    int m0 = tile_row * Narrow::M, n0 = tile_column * Narrow::N, groups = groups_of(p.n, n0);
    int begin = blockIdx.y * CHUNK, end = least(begin + CHUNK, p.k);
    auto fetch_both = [&](int step, u32 to) {
        int k0 = begin + step * DEPTH;
        u32 second = to + Narrow::OPERAND;
        fetch<Narrow, ACROSS_K, Narrow::M, WHOLE>(to, y, m0, p.m, k0, end, Unpacked{rows});
        fetch<Narrow, ACROSS_K, Narrow::N, WHOLE>(second, Matrix<bf16>{s, p.ldb}, n0, p.n, k0, end, Same());
    };
    float acc[1][8][4] = {};
    multiply<Narrow, ACROSS_K, ACROSS_K>(acc, shared_address(memory), (end - begin + DEPTH - 1) / DEPTH, groups,
                                         fetch_both);
    partial += (i64)blockIdx.y * p.m * p.n;
    each_pair<Narrow>(acc, m0, n0, groups, [&](int row, int column, float(&v)[2]) {
        if (row < p.m) keep_partial(partial, across, p, row, column, v);
    });
}

extern "C" __global__ void __launch_bounds__(128)
    linear_bwd_lora_grad_bf16(const Joined<bf16> y, const bf16* s, float* partial, const Rows rows, int first,
                              int across, const Problem p) {
    grad<true>(y, s + first, partial, rows, across, p);
}

// linear_bwd_lora_grad_any: the same for rows that do not begin on 16 bytes
// Shapes: as linear_bwd_lora_grad's.
// Layout: values aligned to themselves, any lda, ldb, of two parts of y the first a multiple of 8 wide; partial to 8
//   bytes; nothing overlaps.
// Grid: x ⌈m/64⌉·⌈n/64⌉, y ⌈k/512⌉; blocks of 128.
// Cost: as linear_bwd_lora_grad's, but bound by the loads: eight of 2 bytes for each of 16.
// Traffic: as linear_bwd_lora_grad's, and each of the eight loads touches the sectors that the other seven do, which
//   the L1 cache has.
// Idea: as linear_fwd_any's.
extern "C" __global__ void __launch_bounds__(128)
    linear_bwd_lora_grad_any_bf16(const Joined<bf16> y, const bf16* s, float* partial, const Rows rows, int first,
                                  int across, const Problem p) {
    grad<false>(y, s + first, partial, rows, across, p);
}
