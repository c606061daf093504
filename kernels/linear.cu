// Matrix products of `src/ops/linear.rs` in bf16, on tensor cores, with the adapters' part as further steps of k.
#include "common/gemm.cuh"

using Tile = Shape<128, 128, 2, 4>;

// Σz² of each 16 columns of the tile's rows, out of the registers, for the norms of the heads.
__device__ __forceinline__ void survey(NormRope<bf16>& e, const float (&acc)[4][4][4], const Floats& bias,
                                       const Problem& p, int n0, void* memory) {
    e.norms = (float*)memory;
    int lane = threadIdx.x & 31, column = Tile::warp_n() + (lane & 3) * 2;
    float add[4][2];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int at = n0 + column + j * 8 + k;
            add[j][k] = bias.at && at < p.n ? bias[at] : 0.0f;
        }
    __syncthreads(); // Another warp may still multiply what lies there.
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int part = 0; part < 2; part++) {
                float squares = 0.0f;
#pragma unroll
                for (int j = 2 * part; j < 2 * part + 2; j++)
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        float z = acc[i][j][2 * h + k] + add[j][k];
                        squares += z * z;
                    }
                squares = sum_of_four(squares);
                int row = Tile::warp_m() + i * 16 + h * 8 + (lane >> 2);
                if ((lane & 3) == 0) *e.place(Tile::warp_n() / 16 + part, row) = squares;
            }
    e.measure();
}

// linear_fwd, linear_fwd_wide, linear_fwd_gelu, linear_fwd_resid, linear_fwd_resid_wide, linear_bwd_dx, linear_bwd_dw:
//   C[m,n] = epilogue(A·B + s·f + bias), + C where accumulate ≠ 0
//   fwd y = x·Wᵀ: A = x [m,k], B = W [n,k]. gelu: GELU of that. resid: resid + that, gated where there is a gate.
//   wide: y, and the residual, in f32. bwd_dx dx = dy·W: A = dy [m,k], B = W [k,n]. bwd_dw dW = dyᵀ·x: A = dy [k,m],
//   B = x [k,n], dW in f32. x may lie in two matrices, its first columns and the others; then W's columns are two B of
//   bwd_dx. The adapters' part: s [packed rows, rank], their own scale in it; f [n, rank] in fwd,
//   [rank, n] in bwd_dx; rows that they do not act on have none.
// Shapes: as written, row-major as they lie in memory; bias [n] of either dtype, or null; C, resid [m,n]; z [m,n] in
//   bf16 with C's ldc, what goes into the epilogue, or null where backward is not wanted. Any m, n, k ≥ 0.
// Layout: A, B, s, f aligned to 16 bytes with lda, ldb, ldf, rank and the columns of either part of x multiples of 8;
//   C, z, resid aligned to 8 bytes with ldc even; bias and tables to themselves. A and B may overlap each other, C may
//   be resid, else nothing.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: 2·m·n·k FLOPs, 2·(m·k + k·n + m·n) bytes; bound by the tensor cores from k ≈ 500 on. Adapters add
//   2·rows·n·rank FLOPs in the tiles that have a row they act on, and nothing elsewhere.
// Dynamic shared: 65536 bytes
// Traffic: a block reads the 128 rows of A and the 128 of B that meet in its tile, so A is read n/128 times and B m/128
//   times, from the L2 cache but for the first; a warp stores 16 bytes of a row at a time, and the L2 cache joins them.
//   The tensor cores are what it waits for.
// Idea: 128×128×32 tiles, warp tile 64×32; four stages of asynchronous copies hide memory, two blocks per
//   multiprocessor hide the loads of fragments, swizzled pieces keep ldmatrix without conflicts, and the
//   transposing ldmatrix serves every orientation from the matrices as they lie. One k loop in one order: a row's bits
//   do not depend on m or on its neighbours. Which adapters act on a row is in s, as zeros, so one launch serves all.
template <int A_ALONG, int B_ALONG, bool WHOLE, class A, class B, class Out, class E>
__device__ __forceinline__ void product(const A& a, const B& b, const Floats& bias, Out* c, E e,
                                        const Extra<bf16>& extra, const Problem& p) {
    extern __shared__ __align__(128) u8 memory[];
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + Tile::M - 1) / Tile::M, (p.n + Tile::N - 1) / Tile::N, tile_row, tile_column);
    int m0 = tile_row * Tile::M, n0 = tile_column * Tile::N;
    int steps = (p.k + DEPTH - 1) / DEPTH, more = 0;
    if (A_ALONG == ALONG_K) more = (extra.depth(m0, least(m0 + Tile::M, p.m)) + DEPTH - 1) / DEPTH;
    auto fetch_both = [&](int step, u32 to) {
        u32 second = to + Tile::OPERAND;
        if (A_ALONG == ACROSS_K || step < steps) {
            int k0 = step * DEPTH;
            fetch<Tile, A_ALONG, Tile::M, WHOLE>(to, a, m0, p.m, k0, p.k, Same());
            fetch<Tile, B_ALONG, Tile::N, WHOLE>(second, b, n0, p.n, k0, p.k, Same());
        } else {
            int k0 = (step - steps) * DEPTH, rank = extra.rank;
            Matrix<bf16> s{extra.s, rank}, f{extra.f, extra.ldf};
            fetch<Tile, A_ALONG, Tile::M, WHOLE>(to, s, m0, p.m, k0, rank, Packed{extra.rows});
            fetch<Tile, B_ALONG, Tile::N, WHOLE>(second, f, n0, p.n, k0, rank, Same());
        }
    };
    float acc[4][4][4] = {};
    multiply<Tile, A_ALONG, B_ALONG>(acc, shared_address(memory), steps + more, Tile::WN / 16, fetch_both);
    survey(e, acc, bias, p, n0, memory);
    each_pair<Tile>(acc, m0, n0, Tile::WN / 16, [&](int row, int column, float(&v)[2]) {
        finish<2>(p, bias, c, e, row, column, WHOLE, v);
    });
}

extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c, const Extra<bf16> extra,
                    const Problem p) {
    product<ALONG_K, ALONG_K, true>(a, Matrix<bf16>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_wide_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, float* c, const Extra<bf16> extra,
                         const Problem p) {
    product<ALONG_K, ALONG_K, true>(a, Matrix<bf16>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_gelu_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c, const Gelu<bf16> e,
                         const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, true>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_resid_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c, const Residual<bf16, bf16> e,
                          const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, true>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_resid_wide_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, float* c,
                               const Residual<bf16, float> e, const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, true>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dx_bf16(const bf16* a, const bf16* b, const Floats bias, bf16* c, const Extra<bf16> extra,
                       const Problem p) {
    product<ALONG_K, ACROSS_K, true>(Matrix<bf16>{a, p.lda}, Matrix<bf16>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dw_bf16(const bf16* a, const Joined<bf16> b, const Floats bias, float* c, const Extra<bf16> extra,
                       const Problem p) {
    product<ACROSS_K, ACROSS_K, true>(Matrix<bf16>{a, p.lda}, b, bias, c, Plain(), extra, p);
}

// linear_fwd_rope: y = rope(norm(x·Wᵀ + s·f + bias)), as qk_norm_rope_fwd makes it, of what is not rounded yet
// Shapes: as linear_fwd's; n is whole heads of 16, 32, 64 or 128; weight [2·pairs], cosine, sine [tokens, pairs] f32.
// Layout: as linear_fwd's; weight and angles to themselves.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: linear_fwd's, 8 bytes for each of `pairs·tokens` angles, 12 FLOPs for each of y's.
// Dynamic shared: 65536 bytes
// Traffic: as linear_fwd's; angles are read for every head.
// Idea: a tile holds whole heads, so that the norm is of sums over four lanes and, in shared memory that the product is
//   done with, over parts of 16 columns in their order; a pair that is turned lies in one thread. Nothing is read back.
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_rope_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c, const NormRope<bf16> e,
                         const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, true>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}

// linear_bwd_dx_gelu: dz = GELU′(z) ⊙ (dy·W + s·f), what went into GELU being z and what came out of it x
// Shapes: as linear_bwd_dx's; z, C [m,n].
// Layout: as linear_fwd's; C is not z.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: linear_bwd_dx's, 2·m·n bytes and 20·m·n FLOPs.
// Dynamic shared: 65536 bytes
// Traffic: as linear_fwd's.
// Idea: as linear_fwd's; the gradient of x itself is nobody's, and is not written.
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dx_gelu_bf16(const bf16* a, const bf16* b, const Floats bias, bf16* c, const Slope<bf16> e,
                            const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ACROSS_K, true>(Matrix<bf16>{a, p.lda}, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}

// linear_fwd_any, linear_fwd_wide_any, linear_fwd_gelu_any, linear_fwd_resid_any, linear_fwd_resid_wide_any: the same
//   for rows that do not begin on 16 bytes
// Shapes: as linear_fwd's.
// Layout: values aligned to themselves, any lda, ldb, ldc, ldf; where x lies in two, the first has a multiple of 8
//   columns; overlaps as linear_fwd's.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: as linear_fwd's, but bound by the loads: eight of 2 bytes for each of 16, and they wait for memory.
// Dynamic shared: 65536 bytes
// Traffic: as linear_fwd's, and each of the eight loads touches the sectors that the other seven do, which the L1 cache
//   has.
// Idea: odd widths are rare (a plane's 3 channels); they share the loop, the order and the bits.
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_any_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c, const Extra<bf16> extra,
                        const Problem p) {
    product<ALONG_K, ALONG_K, false>(a, Matrix<bf16>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_wide_any_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, float* c, const Extra<bf16> extra,
                             const Problem p) {
    product<ALONG_K, ALONG_K, false>(a, Matrix<bf16>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_gelu_any_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c, const Gelu<bf16> e,
                             const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, false>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_resid_any_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, bf16* c,
                              const Residual<bf16, bf16> e, const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, false>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_resid_wide_any_bf16(const Joined<bf16> a, const bf16* b, const Floats bias, float* c,
                                   const Residual<bf16, float> e, const Extra<bf16> extra, const Problem p) {
    product<ALONG_K, ALONG_K, false>(a, Matrix<bf16>{b, p.ldb}, bias, c, e, extra, p);
}

// linear_bwd_dx_any, linear_bwd_dw_any: the backward ones for rows that do not begin on 16 bytes
// Shapes: as linear_fwd's.
// Layout: as linear_fwd_any's.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: as linear_fwd_any's.
// Dynamic shared: 65536 bytes
// Traffic: as linear_fwd's, and each of the eight loads touches the sectors that the other seven do, which the L1 cache
//   has.
// Idea: as linear_fwd_any's.
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_dx_any_bf16(const bf16* a, const bf16* b, const Floats bias, bf16* c, const Extra<bf16> extra,
                           const Problem p) {
    product<ALONG_K, ACROSS_K, false>(Matrix<bf16>{a, p.lda}, Matrix<bf16>{b, p.ldb}, bias, c, Plain(), extra, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_dw_any_bf16(const bf16* a, const Joined<bf16> b, const Floats bias, float* c, const Extra<bf16> extra,
                           const Problem p) {
    product<ACROSS_K, ACROSS_K, false>(Matrix<bf16>{a, p.lda}, b, bias, c, Plain(), extra, p);
}
