// Matrix products of `src/ops/linear.rs`: C = α·A·B (+ bias) (+ C), in bf16 on tensor cores and in true f32.
#include "common/copy.cuh"
#include "common/gelu.cuh"
#include "common/mma.cuh"

// What the products share. A is [m, k] and B [k, n] to the eye; which of their dimensions is contiguous in memory is
// the kernel's orientation. lda, ldb, ldc are the distances of two rows as they lie in memory, in elements.
struct Problem {
    int m, n, k;
    int lda, ldb, ldc;
    float alpha;
    int accumulate; // ≠ 0: adds to what C holds
};

// A: [m, k] with k contiguous, or [k, m] with m contiguous. B: [n, k] with k contiguous, or [k, n] with n contiguous.
enum { ALONG_K, ACROSS_K };

// Which tile a block takes: 8 rows of tiles are walked column by column, so that what runs at once shares its operands
// in the L2 cache.
__device__ __forceinline__ void tile_of(int block, int rows, int columns, int& row, int& column) {
    constexpr int GROUP = 8;
    int width = GROUP * columns, first = block / width * GROUP;
    int height = rows - first < GROUP ? rows - first : GROUP;
    row = first + block % width % height;
    column = block % width / height;
}

// What is done to a value of C, biased and added, before it is stored.
struct Plain {
    static constexpr bool SPLIT = false; // Is the value before it wanted too?
    static __device__ __forceinline__ float of(float v) { return v; }
};
struct Gelu {
    static constexpr bool SPLIT = true;
    static __device__ __forceinline__ float of(float v) { return gelu(v); }
};

__device__ __forceinline__ int clamp(int v, int most) { return v < 0 ? 0 : v < most ? v : most; }

// ---- bf16 ----

constexpr int TILE = 128, DEPTH = 32, STAGES = 4;
constexpr int OPERAND = TILE * DEPTH * 2, STAGE = 2 * OPERAND; // bytes

// Where 16-byte piece `piece` of row `row` of a tile lies. Rows are 64 bytes (contiguous along k: 128 rows of 4 pieces)
// or 256 (across: 32 rows of 16); the pieces are swapped so that 8 rows at one column hit 8 different bank groups.
template <int CONTIGUOUS> __device__ __forceinline__ u32 place(int row, int piece) {
    if (CONTIGUOUS == ALONG_K) return row * 64 + ((piece ^ ((row >> 1) & 3)) << 4);
    return row * 256 + ((piece ^ (row & 7)) << 4);
}

// Eight neighbours of which the first `count` are there, the rest zero; any alignment.
__device__ __forceinline__ Bytes16 gather(const bf16* from, int count) {
    u32 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? from[i].bits : 0;
    return {v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16};
}

// One stage of one operand: 128 (m or n, from `first`, of `size`) by 32 (k, from `k0`), zero beyond the edges. WHOLE:
// rows begin on 16 bytes.
template <int CONTIGUOUS, bool WHOLE>
__device__ __forceinline__ void fetch(u32 to, const bf16* from, int first, int size, int k0, int k, int ld) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int piece = threadIdx.x + i * 256;
        int row, column, bytes;
        i64 at;
        if (CONTIGUOUS == ALONG_K) {
            row = piece >> 2, column = piece & 3;
            int at_row = first + row, at_k = k0 + column * 8;
            bytes = at_row < size ? clamp(2 * (k - at_k), 16) : 0;
            at = (i64)at_row * ld + at_k;
        } else {
            row = piece >> 4, column = piece & 15;
            int at_k = k0 + row, at_column = first + column * 8;
            bytes = at_k < k ? clamp(2 * (size - at_column), 16) : 0;
            at = (i64)at_k * ld + at_column;
        }
        u32 there = to + place<CONTIGUOUS>(row, column);
        if (WHOLE)
            copy16(there, bytes ? from + at : from, bytes);
        else
            put16(there, gather(from + at, bytes >> 1));
    }
}

// The 16×16 fragment of A at row `m`, depth `k` of a stage.
template <int CONTIGUOUS> __device__ __forceinline__ void load_a(u32 (&r)[4], u32 tile, int m, int k) {
    int lane = threadIdx.x & 31;
    if (CONTIGUOUS == ALONG_K)
        load_matrices(r, tile + place<ALONG_K>(m + (lane & 15), (k >> 3) + (lane >> 4)));
    else
        load_matrices_transposed(
            r, tile + place<ACROSS_K>(k + (lane & 7) + ((lane >> 4) << 3), (m >> 3) + ((lane >> 3) & 1)));
}

// Two 16×8 fragments of B at columns `n` and n + 8: r[0], r[1] and r[2], r[3].
template <int CONTIGUOUS> __device__ __forceinline__ void load_b(u32 (&r)[4], u32 tile, int n, int k) {
    int lane = threadIdx.x & 31;
    if (CONTIGUOUS == ALONG_K)
        load_matrices(r, tile + place<ALONG_K>(n + (lane & 7) + ((lane >> 4) << 3), (k >> 3) + ((lane >> 3) & 1)));
    else
        load_matrices_transposed(r, tile + place<ACROSS_K>(k + (lane & 15), (n >> 3) + (lane >> 4)));
}

__device__ __forceinline__ void store_pair(bf16* to, float a, float b) { *reinterpret_cast<u32*>(to) = pair_of(a, b); }
__device__ __forceinline__ void store_pair(float* to, float a, float b) {
    *reinterpret_cast<float2*>(to) = make_float2(a, b);
}

// Two neighbours of a row of C: scaled, biased, added, stored; where E splits, as they are to z as well, if not null.
template <class E, bool WHOLE, class Out>
__device__ __forceinline__ void finish(const Problem& p, Out* c, Out* z, const bf16* bias, int row, int column, float a,
                                       float b) {
    if (row >= p.m || column >= p.n) return;
    bool both = column + 1 < p.n;
    a *= p.alpha, b *= p.alpha;
    if (bias) {
        a += load(bias + column);
        if (both) b += load(bias + column + 1);
    }
    i64 at = (i64)row * p.ldc + column;
    if (p.accumulate) {
        a += load(c + at);
        if (both) b += load(c + at + 1);
    }
    auto put = [&](Out* to, float a, float b) {
        if (WHOLE && both) {
            store_pair(to, a, b);
        } else {
            store(to, a);
            if (both) store(to + 1, b);
        }
    };
    if (E::SPLIT && z) put(z + at, a, b);
    put(c + at, E::of(a), E::of(b));
}

// linear_fwd, linear_fwd_gelu, linear_fwd_wide, linear_bwd_dx, linear_bwd_dw: C[m,n] = α·A·B + bias, + C where
//   accumulate ≠ 0
//   fwd y = x·Wᵀ: A = x [m,k], B = W [n,k]. fwd_gelu: C = GELU of that, and that itself to z. fwd_wide: y in f32.
//   bwd_dx dx = dy·W: A = dy [m,k], B = W [k,n]. bwd_dw dW = dyᵀ·x: A = dy [k,m], B = x [k,n], dW in f32.
// Shapes: as written, row-major as they lie in memory; bias [n] or null; C [m,n]; z [m,n] with C's ldc, or null where
//   backward is not wanted. Any m, n, k ≥ 1.
// Layout: A, B aligned to 16 bytes with lda, ldb multiples of 8; C, z aligned to 8 bytes with ldc even; bias to 2.
//   A and B may overlap each other, C and z nothing.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: 2·m·n·k FLOPs, 2·(m·k + k·n + m·n) bytes; bound by the tensor cores from k ≈ 500 on.
// Dynamic shared: 65536 bytes
// Traffic: a block reads the 128 rows of A and the 128 of B that meet in its tile, so A is read n/128 times and B m/128
//   times, from the L2 cache but for the first; a warp stores 16 bytes of a row at a time, and the L2 cache joins them.
//   The tensor cores are what it waits for.
// Idea: 128×128×32 tiles, warp tile 64×32; four stages of asynchronous copies hide memory, two blocks per
//   multiprocessor hide the loads of fragments, swizzled pieces keep ldmatrix without conflicts, and the
//   transposing ldmatrix serves every orientation from the matrices as they lie. One k loop in one order: a row's bits
//   do not depend on m or on its neighbours.
template <int A_ALONG, int B_ALONG, class E, bool WHOLE, class Out>
__device__ __forceinline__ void product(const bf16* __restrict__ a, const bf16* __restrict__ b,
                                        const bf16* __restrict__ bias, Out* c, Out* z, const Problem& p) {
    extern __shared__ __align__(128) u8 memory[];
    u32 base = shared_address(memory);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int warp_m = (warp & 1) * 64, warp_n = (warp >> 1) * 32;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + TILE - 1) / TILE, tile_row, tile_column);
    int m0 = tile_row * TILE, n0 = tile_column * TILE;
    int steps = (p.k + DEPTH - 1) / DEPTH;

    auto fetch_stage = [&](int step) {
        if (step < steps) {
            u32 to = base + step % STAGES * STAGE;
            fetch<A_ALONG, WHOLE>(to, a, m0, p.m, step * DEPTH, p.k, p.lda);
            fetch<B_ALONG, WHOLE>(to + OPERAND, b, n0, p.n, step * DEPTH, p.k, p.ldb);
        }
        copies_commit(); // An empty group where there is nothing left, so that counting stays simple.
    };
    float acc[4][4][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fetch_stage(s);
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        // The stage this overwrites was last read in the step before, which all have left.
        fetch_stage(step + STAGES - 1);
        u32 tile = base + step % STAGES * STAGE;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            u32 fa[4][4], fb[2][4];
#pragma unroll
            for (int j = 0; j < 2; j++) load_b<B_ALONG>(fb[j], tile + OPERAND, warp_n + j * 16, k);
#pragma unroll
            for (int i = 0; i < 4; i++) load_a<A_ALONG>(fa[i], tile, warp_m + i * 16, k);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    mma(acc[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
        }
    }

#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = m0 + warp_m + i * 16 + (lane >> 2);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int column = n0 + warp_n + j * 8 + (lane & 3) * 2;
            finish<E, WHOLE>(p, c, z, bias, row, column, acc[i][j][0], acc[i][j][1]);
            finish<E, WHOLE>(p, c, z, bias, row + 8, column, acc[i][j][2], acc[i][j][3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, const Problem p) {
    product<ALONG_K, ALONG_K, Plain, true>(a, b, bias, c, (bf16*)nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_gelu_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, bf16* z, const Problem p) {
    product<ALONG_K, ALONG_K, Gelu, true>(a, b, bias, c, z, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_wide_bf16(const bf16* a, const bf16* b, const bf16* bias, float* c, const Problem p) {
    product<ALONG_K, ALONG_K, Plain, true>(a, b, bias, c, (float*)nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dx_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, const Problem p) {
    product<ALONG_K, ACROSS_K, Plain, true>(a, b, bias, c, (bf16*)nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dw_bf16(const bf16* a, const bf16* b, const bf16* bias, float* c, const Problem p) {
    product<ACROSS_K, ACROSS_K, Plain, true>(a, b, bias, c, (float*)nullptr, p);
}

// linear_fwd_any, linear_fwd_gelu_any, linear_fwd_wide_any, linear_bwd_dx_any, linear_bwd_dw_any: the same for rows
// that do not begin on 16 bytes
// Shapes: as linear_fwd's.
// Layout: values aligned to themselves, any lda, ldb, ldc; A and B may overlap each other, C and z nothing.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: as linear_fwd's, but bound by the loads: eight of 2 bytes for each of 16, and they wait for memory.
// Dynamic shared: 65536 bytes
// Traffic: as linear_fwd's, and each of the eight loads touches the sectors that the other seven do, which the L1 cache
//   has.
// Idea: odd widths are rare (a plane's 3 channels, a rank of 20); they share the loop, the order and the bits.
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_any_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, const Problem p) {
    product<ALONG_K, ALONG_K, Plain, false>(a, b, bias, c, (bf16*)nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_gelu_any_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, bf16* z, const Problem p) {
    product<ALONG_K, ALONG_K, Gelu, false>(a, b, bias, c, z, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_fwd_wide_any_bf16(const bf16* a, const bf16* b, const bf16* bias, float* c, const Problem p) {
    product<ALONG_K, ALONG_K, Plain, false>(a, b, bias, c, (float*)nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_dx_any_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, const Problem p) {
    product<ALONG_K, ACROSS_K, Plain, false>(a, b, bias, c, (bf16*)nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_bwd_dw_any_bf16(const bf16* a, const bf16* b, const bf16* bias, float* c, const Problem p) {
    product<ACROSS_K, ACROSS_K, Plain, false>(a, b, bias, c, (float*)nullptr, p);
}

// ---- f32 ----

// Tiles are [16][128] with 4 values between depths: 4 rows by 8 depths, which a warp writes, and 32 rows of one depth
// lie in 32 different banks.
constexpr int DEPTH_F32 = 16, PITCH = TILE + 4;

// 128 (m or n, from `first`, of `size`) by 16 (k) values of one operand, 8 per thread, zero beyond the edges. A warp
// reads 32 bytes of each of 4 rows where they are contiguous along k, else 128 bytes of one.
template <int CONTIGUOUS>
__device__ __forceinline__ void fetch_f32(u32 to, const float* from, int first, int size, int k0, int k, int ld) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
// Not unrolled wholly: the compiler would keep 16 addresses in registers.
#pragma unroll 2
    for (int i = 0; i < 8; i++) {
        int row, depth;
        if (CONTIGUOUS == ALONG_K)
            row = (i >> 1) * 32 + warp * 4 + (lane >> 3), depth = (i & 1) * 8 + (lane & 7);
        else
            row = threadIdx.x & 127, depth = (threadIdx.x >> 7) + i * 2;
        int at_row = first + row, at_k = k0 + depth;
        bool inside = at_row < size && at_k < k;
        i64 at = CONTIGUOUS == ALONG_K ? (i64)at_row * ld + at_k : (i64)at_k * ld + at_row;
        copy4(to + (depth * PITCH + row) * 4, inside ? from + at : from, inside ? 4 : 0);
    }
}

// Four values of C at a time, in one store where they are aligned to it.
template <class E>
__device__ __forceinline__ void finish4(const Problem& p, float* c, float* z, const float* bias, int row, int column,
                                        const float* v) {
    if (row >= p.m) return;
    if (column + 4 <= p.n && p.ldc % 4 == 0 && aligned(c, z)) {
        i64 at = (i64)row * p.ldc + column;
        float y[4], old[4];
        if (p.accumulate) load_piece(c + at, old);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            y[j] = v[j] * p.alpha + (bias ? bias[column + j] : 0.0f);
            if (p.accumulate) y[j] += old[j];
        }
        if (E::SPLIT && z) store_whole(z + at, y);
#pragma unroll
        for (int j = 0; j < 4; j++) y[j] = E::of(y[j]);
        store_whole(c + at, y);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (column + j >= p.n) return;
        i64 at = (i64)row * p.ldc + column + j;
        float y = v[j] * p.alpha + (bias ? bias[column + j] : 0.0f);
        if (p.accumulate) y += c[at];
        if (E::SPLIT && z) z[at] = y;
        c[at] = E::of(y);
    }
}

// linear_fwd_f32, linear_fwd_gelu_f32, linear_bwd_dx_f32, linear_bwd_dw_f32: as in bf16, in f32 throughout
// Shapes: as linear_fwd's.
// Layout: values aligned to 4 bytes, any lda, ldb, ldc; A and B may overlap each other, C and z nothing.
// Grid: ⌈m/128⌉·⌈n/128⌉ blocks of 256.
// Cost: 2·m·n·k FLOPs, 4·(m·k + k·n + m·n) bytes; bound by the FMA units from k ≈ 100 on.
// Traffic: as linear_fwd's: operands are read again for every tile, from the L2 cache, while the FMA units are what it
//   waits for.
// Idea: true f32 (FFMA, never tf32). 8×8 outputs per thread from 4+4 by 4+4 rows and columns 64 apart, so that reads of
//   shared memory are 16 bytes wide and without conflicts; two buffers, the next tile is copied past the registers.
template <int A_ALONG, int B_ALONG, class E>
__device__ __forceinline__ void product_f32(const float* __restrict__ a, const float* __restrict__ b,
                                            const float* __restrict__ bias, float* c, float* z, const Problem& p) {
    __shared__ __align__(16) float tile_a[2][DEPTH_F32 * PITCH], tile_b[2][DEPTH_F32 * PITCH];
    int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + TILE - 1) / TILE, tile_row, tile_column);
    int m0 = tile_row * TILE, n0 = tile_column * TILE;
    int steps = (p.k + DEPTH_F32 - 1) / DEPTH_F32;
    float acc[8][8] = {};
    auto fetch = [&](int step) {
        int buffer = step & 1, k0 = step * DEPTH_F32;
        fetch_f32<A_ALONG>(shared_address(tile_a[buffer]), a, m0, p.m, k0, p.k, p.lda);
        fetch_f32<B_ALONG>(shared_address(tile_b[buffer]), b, n0, p.n, k0, p.k, p.ldb);
        copies_commit();
    };
    fetch(0);
    for (int step = 0; step < steps; step++) {
        copies_wait<0>();
        __syncthreads();
        // The buffer this overwrites was last read in the step before, which all have left.
        if (step + 1 < steps) fetch(step + 1);
        const float *ta = tile_a[step & 1], *tb = tile_b[step & 1];
#pragma unroll
        for (int k = 0; k < DEPTH_F32; k++) {
            float va[8], vb[8];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float4 x = *reinterpret_cast<const float4*>(ta + k * PITCH + h * 64 + ty * 4);
                float4 y = *reinterpret_cast<const float4*>(tb + k * PITCH + h * 64 + tx * 4);
                va[h * 4] = x.x, va[h * 4 + 1] = x.y, va[h * 4 + 2] = x.z, va[h * 4 + 3] = x.w;
                vb[h * 4] = y.x, vb[h * 4 + 1] = y.y, vb[h * 4 + 2] = y.z, vb[h * 4 + 3] = y.w;
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) acc[i][j] = fmaf(va[i], vb[j], acc[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = m0 + (i >> 2) * 64 + ty * 4 + (i & 3);
        finish4<E>(p, c, z, bias, row, n0 + tx * 4, acc[i]);
        finish4<E>(p, c, z, bias, row, n0 + 64 + tx * 4, acc[i] + 4);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_f32(const float* a, const float* b, const float* bias, float* c, const Problem p) {
    product_f32<ALONG_K, ALONG_K, Plain>(a, b, bias, c, nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_fwd_gelu_f32(const float* a, const float* b, const float* bias, float* c, float* z, const Problem p) {
    product_f32<ALONG_K, ALONG_K, Gelu>(a, b, bias, c, z, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dx_f32(const float* a, const float* b, const float* bias, float* c, const Problem p) {
    product_f32<ALONG_K, ACROSS_K, Plain>(a, b, bias, c, nullptr, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    linear_bwd_dw_f32(const float* a, const float* b, const float* bias, float* c, const Problem p) {
    product_f32<ACROSS_K, ACROSS_K, Plain>(a, b, bias, c, nullptr, p);
}

// ---- the bias ----

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
