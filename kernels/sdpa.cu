// Attention of `src/ops/sdpa.rs`, its scores in memory: the products in bf16, the softmax for either dtype.
#include "common/gemm.cuh"
#include "common/reduce.cuh"
#include "common/sdpa.cuh"

using Tile = Shape<128, 64, 4, 2>;

// sdpa_fwd_scores, sdpa_fwd_values: s[z, i, j] = q[i]·k[j] and o[i] = Σ_j prob[z, i, j]·v[j] of head z
// Shapes: q, o [batch, queries, heads·hd] and k, v [batch, keys, heads·hd]; s in f32 and prob [heads of this launch, m,
//   pitch], m queries from the struct's `first` on. Scores: n = keys, k = hd; values: n = hd, k = keys. Any of them
//   ≥ 0.
// Layout: q, k, prob and v aligned to 16 bytes, hd and pitch multiples of 8, o aligned to 4 bytes; nothing overlaps.
// Grid: x ⌈m/128⌉·⌈n/64⌉, y heads; blocks of 256.
// Cost: 2·m·n·k FLOPs per head, 2 bytes of each value and 4 of each score; bound by the scores up to hd ≈ 300.
// Dynamic shared: 49152 bytes
// Traffic: the 128 rows and the 64 columns that meet in a tile are read for each tile, from the L2 cache but for the
//   first time; a head that is narrower than a sector shares it with its neighbour.
// Idea: the linear layer's loop over k; a head is a stride, nothing is turned or copied first.
template <int B_ALONG, bool WHOLE, class Out>
__device__ __forceinline__ void product(const bf16* a, const bf16* b, Out* c, const Heads& heads, const Problem& p) {
    extern __shared__ __align__(128) u8 memory[];
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.m + Tile::M - 1) / Tile::M, (p.n + Tile::N - 1) / Tile::N, tile_row, tile_column);
    int m0 = tile_row * Tile::M, n0 = tile_column * Tile::N;
    a += heads.of(heads.a), b += heads.of(heads.b), c += heads.of(heads.c);
    auto fetch_both = [&](int step, u32 to) {
        int k0 = step * DEPTH;
        fetch<Tile, ALONG_K, Tile::M, WHOLE>(to, Matrix<bf16>{a, p.lda}, m0, p.m, k0, p.k, Same());
        fetch<Tile, B_ALONG, Tile::N, WHOLE>(to + Tile::OPERAND, Matrix<bf16>{b, p.ldb}, n0, p.n, k0, p.k, Same());
    };
    float acc[Tile::WM / 16][Tile::WN / 8][4] = {};
    multiply<Tile, ALONG_K, B_ALONG>(acc, shared_address(memory), (p.k + DEPTH - 1) / DEPTH, Tile::WN / 16,
                                     fetch_both);
    bool whole = p.ldc % 2 == 0 && aligned<2 * sizeof(Out)>(c);
    each_pair<Tile>(acc, m0, n0, Tile::WN / 16, [&](int row, int column, float(&v)[2]) {
        finish<2>(p, Floats{nullptr, 0}, c, Plain(), row, column, whole, v);
    });
}

extern "C" __global__ void __launch_bounds__(256, 2)
    sdpa_fwd_scores_bf16(const bf16* q, const bf16* k, float* s, const Heads heads, const Problem p) {
    product<ALONG_K, true>(q, k, s, heads, p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    sdpa_fwd_values_bf16(const bf16* prob, const bf16* v, bf16* o, const Heads heads, const Problem p) {
    product<ACROSS_K, true>(prob, v, o, heads, p);
}

// sdpa_fwd_scores_any, sdpa_fwd_values_any: the same for heads that do not begin on 16 bytes
// Shapes: as sdpa_fwd_scores' and sdpa_fwd_values'.
// Layout: aligned to a value; nothing overlaps.
// Grid: x ⌈m/128⌉·⌈n/64⌉, y heads; blocks of 256.
// Cost: as theirs, but bound by the loads: eight of 2 bytes for each of 16.
// Dynamic shared: 49152 bytes
// Traffic: as sdpa_fwd_scores', and each of the eight loads touches the sectors that the other seven do.
// Idea: heads of 6 are for tests; they share the loop, the order and the bits.
extern "C" __global__ void __launch_bounds__(256)
    sdpa_fwd_scores_any_bf16(const bf16* q, const bf16* k, float* s, const Heads heads, const Problem p) {
    product<ALONG_K, false>(q, k, s, heads, p);
}
extern "C" __global__ void __launch_bounds__(256)
    sdpa_fwd_values_any_bf16(const bf16* prob, const bf16* v, bf16* o, const Heads heads, const Problem p) {
    product<ACROSS_K, false>(prob, v, o, heads, p);
}

// sdpa_fwd_softmax: prob[z, i, j] = softmax over j of scale·s[z, i, j] + bias[head, i, j], of j ≤ i alone where causal
// Shapes: s [heads of this launch, rows, pitch] in f32, prob likewise in either dtype, of which `keys` of each row are
//   read and written; bias [heads, queries, keys] in f32 or null; the first row is query `first`; any of them ≥ 0.
// Layout: aligned to a value; nothing overlaps.
// Grid: x ⌈rows/8⌉, y heads; blocks of 256: a warp takes a row.
// Cost: 8 bytes (6 in bf16) per score, 4 more with a bias; bound by bandwidth.
// Traffic: a row and its bias are read twice, the second time from the cache; odd rows begin amid a sector.
// Idea: maximum and sum in one pass, as each lane rescales its sum when its maximum grows.
template <class T>
__device__ __forceinline__ void softmax(const float* __restrict__ s, const float* __restrict__ bias, T* prob,
                                        const Scored& r) {
    int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= r.rows) return;
    int query = r.first + row, head = (r.head + blockIdx.y) % r.heads;
    int keys = r.causal ? least(r.keys, query + 1) : r.keys;
    i64 at = ((i64)blockIdx.y * r.rows + row) * r.pitch;
    s += at, prob += at;
    if (bias) bias += ((i64)head * r.queries + query) * r.keys;
    auto score = [&](int j) { return r.scale * s[j] + (bias ? bias[j] : 0.0f); };
    const float nothing = __uint_as_float(0xff800000u); // −∞
    float most = nothing, sum = 0.0f;
    for (int j = lane; j < keys; j += 32) {
        float v = score(j), top = fmaxf(most, v);
        if (top > nothing) sum = sum * expf(most - top) + expf(v - top);
        most = top;
    }
    float top = most;
#pragma unroll
    for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
    float by = 1.0f / warp_sum(most > nothing ? sum * expf(most - top) : 0.0f);
    for (int j = lane; j < r.keys; j += 32) store(prob + j, j < keys ? expf(score(j) - top) * by : 0.0f);
}

extern "C" __global__ void __launch_bounds__(256)
    sdpa_fwd_softmax_f32(const float* s, const float* bias, float* prob, const Scored r) {
    softmax(s, bias, prob, r);
}
extern "C" __global__ void __launch_bounds__(256)
    sdpa_fwd_softmax_bf16(const float* s, const float* bias, bf16* prob, const Scored r) {
    softmax(s, bias, prob, r);
}
