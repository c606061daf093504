// Joint attention over text and stream tokens in bf16 on tensor cores: the CUDA side of src/ops/attention.rs. f32 is in
// attention_f32.cu.
#include "common/attention.cuh"
#include "common/copy.cuh"
#include "common/mma.cuh"

// Rows of a block's tile, 16 to a warp, and threads of a block.
constexpr int ROWS = 64, THREADS = 128;

// Where 16-byte piece `piece` of row `row` of a tile of HD columns lies: pieces are swapped so that 8 rows at one
// column hit 8 different bank groups.
template <int HD> __device__ __forceinline__ u32 place(int row, int piece) {
    constexpr int PIECES = HD / 8;
    int turn = PIECES >= 8 ? row & 7 : PIECES == 4 ? (row >> 1) & 3 : (row >> 2) & 1;
    return row * HD * 2 + ((piece ^ turn) << 4);
}

// COUNT rows of head `h` of sample `b`, from joint row `first`, into a tile; zero beyond the last and beyond the head.
template <int HD, int COUNT>
__device__ __forceinline__ void fetch(u32 to, const Side<const bf16>& from, int text, int stream, const Geometry& g,
                                      int b, int h, int first) {
    constexpr int PIECES = HD / 8;
    // Rows of a model begin on 16 bytes; those of a test need not.
    bool whole = (g.hd & 7) == 0 && aligned(from.text, from.stream);
#pragma unroll
    for (int i = 0; i < COUNT * PIECES / THREADS; i++) {
        int piece = threadIdx.x + i * THREADS, row = piece / PIECES, p = piece % PIECES;
        bool inside = first + row < text + stream && p * 8 < g.hd;
        const bf16* source = inside ? row_of(from, text, stream, g, b, h, first + row) + p * 8 : nullptr;
        if (whole) {
            copy16(to + place<HD>(row, p), inside ? source : from.stream, inside ? 16 : 0);
        } else {
            u32 words[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int c = p * 8 + k * 2;
                u32 lo = inside && c < g.hd ? source[k * 2].bits : 0;
                u32 hi = inside && c + 1 < g.hd ? source[k * 2 + 1].bits : 0;
                words[k] = lo | hi << 16;
            }
            asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to + place<HD>(row, p)), "r"(words[0]),
                         "r"(words[1]), "r"(words[2]), "r"(words[3])
                         : "memory");
        }
    }
}

// The 16×16 fragment of a left factor at row `m`, column `k` of a tile.
template <int HD> __device__ __forceinline__ void load_rows(u32 (&r)[4], u32 tile, int m, int k) {
    int lane = threadIdx.x & 31;
    load_matrices(r, tile + place<HD>(m + (lane & 15), (k >> 3) + (lane >> 4)));
}
// Two fragments of a right factor whose columns are rows `n` .. n + 15 of the tile, at depth `k`.
template <int HD> __device__ __forceinline__ void load_columns(u32 (&r)[4], u32 tile, int n, int k) {
    int lane = threadIdx.x & 31;
    load_matrices(r, tile + place<HD>(n + (lane & 7) + ((lane >> 4) << 3), (k >> 3) + ((lane >> 3) & 1)));
}
// Two fragments of a right factor that is the tile itself: rows k .. k + 15, columns n .. n + 15.
template <int HD> __device__ __forceinline__ void load_across(u32 (&r)[4], u32 tile, int n, int k) {
    int lane = threadIdx.x & 31;
    load_matrices_transposed(r, tile + place<HD>(k + (lane & 15), (n >> 3) + (lane >> 4)));
}

// acc[16×HD] += a·tile: the products of 16 rows, whose fragments `a` are sums of a product before, with 16 rows of a
// tile.
template <int HD>
__device__ __forceinline__ void multiply(float (&acc)[HD / 8][4], const float (&low)[4], const float (&high)[4],
                                         u32 tile, int k) {
    u32 a[4] = {pair_of(low[0], low[1]), pair_of(low[2], low[3]), pair_of(high[0], high[1]), pair_of(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < HD; n += 16) {
        u32 b[4];
        load_across<HD>(b, tile, n, k);
        mma(acc[n / 8], a, b[0], b[1]);
        mma(acc[n / 8 + 1], a, b[2], b[3]);
    }
}

// Writes, or adds, 16 rows of a warp to head `h`: rows from joint row `first`, of which there are text + stream.
template <int HD>
__device__ __forceinline__ void write_rows(const Side<bf16>& to, const float (&acc)[HD / 8][4], const float (&by)[2],
                                           int text, int stream, const Geometry& g, int b, int h, int first,
                                           int adds_text, int adds_stream) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int j = first + (lane >> 2) + half * 8;
        bool is_text = j < text;
        if (j >= text + stream || !(is_text ? to.text : to.stream)) continue;
        bf16* row = row_of(to, text, stream, g, b, h, j);
        bool adds = is_text ? adds_text : adds_stream;
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            int c = n * 8 + (lane & 3) * 2;
            float v[2] = {acc[n][half * 2] * by[half], acc[n][half * 2 + 1] * by[half]};
            if (c + 1 < g.hd && (g.hd & 1) == 0) {
                u32* pair = reinterpret_cast<u32*>(row + c);
                if (adds) v[0] += low(*pair), v[1] += high(*pair);
                *pair = pair_of(v[0], v[1]);
            } else {
                for (int k = 0; k < 2; k++)
                    if (c + k < g.hd) store(row + c + k, adds ? v[k] + load(row + c + k) : v[k]);
            }
        }
    }
}

// attention_fwd_128, attention_fwd_64, attention_fwd_32: o = softmax(q·kᵀ/√hd + bias)·v, lse = log₂ Σ 2^(scores)
//   scores in base 2: scale2 = log₂e/√hd, bias2 = bias·log₂e (a multiplicity of 512 is exactly +9)
// Shapes: q, o text [batch, q_text, heads·hd] and stream [batch, q_stream, heads·hd]; k, v text [batch, k_text, …] and
//   stream [batch, k_stream, …]; the joint order is text, stream. bias2 [3, keys] f32, a row per group of queries
//   (text, the first `img` of the stream, the rest), or null; lse [batch, heads, queries] f32. hd at most the kernel's
//   number.
// Layout: contiguous, values aligned to themselves; 16 bytes at a time where hd is a multiple of 8 and rows are aligned
//   to them. o overlaps nothing.
// Grid: x ⌈queries/64⌉, y heads, z batch; blocks of 128.
// Cost: 4·queries·keys·hd FLOPs per head; bound by the tensor cores and by 2^x.
// Dynamic shared: 81920 bytes at most; 640·HD are used.
// Traffic: the other side's rows come once for every tile of this side's, from the L2 cache but for the first time.
// Idea: FlashAttention-2: 64 queries stay in registers, 64 keys and values at a time come by asynchronous copies, one
//   tile ahead; nothing of the size queries × keys exists. Fixed order of keys: a sample's bits are its own.
template <int HD>
__device__ __forceinline__ void forward(const Side<const bf16>& q, const Side<const bf16>& k, const Side<const bf16>& v,
                                        const float* __restrict__ bias2, const Side<bf16>& o, float* __restrict__ lse,
                                        const Geometry& g) {
    extern __shared__ __align__(128) u8 memory[];
    constexpr int COLUMNS = 64, TILE = COLUMNS * HD * 2;
    u32 rows = shared_address(memory), keys_at = rows + ROWS * HD * 2, values_at = keys_at + 2 * TILE;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, h = blockIdx.y, b = blockIdx.z;
    int first = blockIdx.x * ROWS, queries = g.q_text + g.q_stream, keys = g.k_text + g.k_stream;
    int tiles = (keys + COLUMNS - 1) / COLUMNS;

    fetch<HD, ROWS>(rows, q, g.q_text, g.q_stream, g, b, h, first);
    fetch<HD, COLUMNS>(keys_at, k, g.k_text, g.k_stream, g, b, h, 0);
    fetch<HD, COLUMNS>(values_at, v, g.k_text, g.k_stream, g, b, h, 0);
    copies_commit();
    u32 fq[HD / 16][4];
    float acc[HD / 8][4] = {}, most[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {};
    const float* bias_of[2];
#pragma unroll
    for (int half = 0; half < 2; half++)
        bias_of[half] = bias2 ? bias2 + (i64)group_of(first + warp * 16 + (lane >> 2) + half * 8, g) * keys : nullptr;
    for (int tile = 0; tile < tiles; tile++) {
        int buffer = (tile & 1) * TILE, first_key = tile * COLUMNS;
        if (tile + 1 < tiles) {
            int next = TILE - buffer;
            fetch<HD, COLUMNS>(keys_at + next, k, g.k_text, g.k_stream, g, b, h, first_key + COLUMNS);
            fetch<HD, COLUMNS>(values_at + next, v, g.k_text, g.k_stream, g, b, h, first_key + COLUMNS);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        if (tile == 0) {
#pragma unroll
            for (int d = 0; d < HD; d += 16) load_rows<HD>(fq[d / 16], rows, warp * 16, d);
        }
        float s[COLUMNS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < HD; d += 16)
#pragma unroll
            for (int n = 0; n < COLUMNS; n += 16) {
                u32 fk[4];
                load_columns<HD>(fk, keys_at + buffer, n, d);
                mma(s[n / 8], fq[d / 16], fk[0], fk[1]);
                mma(s[n / 8 + 1], fq[d / 16], fk[2], fk[3]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = most[half];
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int key = first_key + n * 8 + (lane & 3) * 2 + i;
                    float& v = s[n][half * 2 + i];
                    v *= g.scale2;
                    if (key >= keys)
                        v = MINUS_INFINITY;
                    else if (bias2)
                        v += bias_of[half][key];
                    top = fmaxf(top, v);
                }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            // A row that has met only masked keys has no largest score: nothing is taken from its scores, all are 0.
            float base = top == MINUS_INFINITY ? 0.0f : top, keep = exp2f(most[half] - base);
            most[half] = top;
            sum[half] *= keep;
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& v = s[n][half * 2 + i];
                    v = exp2f(v - base);
                    sum[half] += v;
                }
#pragma unroll
            for (int n = 0; n < HD / 8; n++) acc[n][half * 2] *= keep, acc[n][half * 2 + 1] *= keep;
        }
#pragma unroll
        for (int n = 0; n < COLUMNS / 16; n++) multiply<HD>(acc, s[2 * n], s[2 * n + 1], values_at + buffer, n * 16);
        // The next turn writes the buffers that this one has read.
        __syncthreads();
    }
    float by[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        by[half] = 1.0f / total;
        int query = first + warp * 16 + (lane >> 2) + half * 8;
        if ((lane & 3) == 0 && query < queries)
            lse[((i64)b * g.heads + h) * queries + query] = most[half] + log2f(total);
    }
    write_rows<HD>(o, acc, by, g.q_text, g.q_stream, g, b, h, first + warp * 16, 0, 0);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    attention_fwd_128_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                         const float* bias2, const Side<bf16> o, float* lse, const Geometry g) {
    forward<128>(q, k, v, bias2, o, lse, g);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_fwd_64_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                         const float* bias2, const Side<bf16> o, float* lse, const Geometry g) {
    forward<64>(q, k, v, bias2, o, lse, g);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_fwd_32_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                         const float* bias2, const Side<bf16> o, float* lse, const Geometry g) {
    forward<32>(q, k, v, bias2, o, lse, g);
}

// attention_bwd_q_128, attention_bwd_q_64, attention_bwd_q_32: dq
//   p = 2^(scale2·q·k + bias2 − lse), ds = p·(do·v − δ):  dq = scale·Σ ds·k,  dk = scale·Σ ds·q,  dv = Σ p·do
// Shapes: as attention_fwd's; d_o as o; lse, delta [batch, heads, queries]; the gradient as q, either side null: not
//   wanted. Bit 0 / 1 of adds: added to the text's / the stream's.
// Layout: as attention_fwd's; the gradients overlap nothing.
// Grid: x ⌈queries/64⌉, y heads, z batch; blocks of 128.
// Cost: 6·queries·keys·hd FLOPs per head; with kv's 8, 1.4 times the least, for sums in a fixed order without atomics.
// Dynamic shared: 65536 bytes at most; 768·HD are used, 512·HD at 128.
// Traffic: the other side's rows come once for every tile of this side's, from the L2 cache but for the first time.
// Idea: one kernel seen from either side: 64 rows stay, the other side's come in tiles; scores and their gradients are
//   made anew in registers, in the layout in which the next product wants them.

// attention_bwd_kv_128, attention_bwd_kv_64, attention_bwd_kv_32: dk and dv
// Shapes: as attention_bwd_q's; the gradients as k and v, any side null: not wanted. Bits 2, 3 of adds: for dv.
// Layout: as attention_bwd_q's.
// Grid: x ⌈keys/64⌉, y heads, z batch; blocks of 128.
// Cost: 8·queries·keys·hd FLOPs per head.
// Dynamic shared: 65536 bytes at most; 768·HD are used, 512·HD at 128.
// Traffic: the other side's rows come once for every tile of this side's, from the L2 cache but for the first time.
// Idea: as attention_bwd_q's.
template <int HD, bool KV>
__device__ __forceinline__ void backward(const Side<const bf16>& q, const Side<const bf16>& k,
                                         const Side<const bf16>& v, const float* __restrict__ bias2,
                                         const Side<const bf16>& d_o,
                                         const float* __restrict__ lse, const float* __restrict__ delta,
                                         const Side<bf16>& first_out, const Side<bf16>& second_out, const Geometry& g,
                                         int adds) {
    extern __shared__ __align__(128) u8 memory[];
    constexpr int COLUMNS = HD > 64 ? 32 : 64, TILE = COLUMNS * HD * 2;
    u32 near1 = shared_address(memory), near2 = near1 + ROWS * HD * 2, far1 = near2 + ROWS * HD * 2,
        far2 = far1 + 2 * TILE;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, h = blockIdx.y, b = blockIdx.z;
    int queries = g.q_text + g.q_stream, keys = g.k_text + g.k_stream, first = blockIdx.x * ROWS;
    // This side's rows and the other's.
    int text = KV ? g.k_text : g.q_text, stream = KV ? g.k_stream : g.q_stream;
    int far_text = KV ? g.q_text : g.k_text, far_stream = KV ? g.q_stream : g.k_stream;
    int columns = far_text + far_stream, tiles = (columns + COLUMNS - 1) / COLUMNS;
    const Side<const bf16>&n1 = KV ? k : q, &n2 = KV ? v : d_o, &f1 = KV ? q : k, &f2 = KV ? d_o : v;
    lse += ((i64)b * g.heads + h) * queries;
    delta += ((i64)b * g.heads + h) * queries;

    fetch<HD, ROWS>(near1, n1, text, stream, g, b, h, first);
    fetch<HD, ROWS>(near2, n2, text, stream, g, b, h, first);
    fetch<HD, COLUMNS>(far1, f1, far_text, far_stream, g, b, h, 0);
    fetch<HD, COLUMNS>(far2, f2, far_text, far_stream, g, b, h, 0);
    copies_commit();
    float acc1[HD / 8][4] = {}, acc2[KV ? HD / 8 : 1][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        int buffer = (tile & 1) * TILE, first_column = tile * COLUMNS;
        if (tile + 1 < tiles) {
            int next = TILE - buffer;
            fetch<HD, COLUMNS>(far1 + next, f1, far_text, far_stream, g, b, h, first_column + COLUMNS);
            fetch<HD, COLUMNS>(far2 + next, f2, far_text, far_stream, g, b, h, first_column + COLUMNS);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        float s[COLUMNS / 8][4] = {}, ds[COLUMNS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < HD; d += 16) {
            u32 a1[4], a2[4];
            load_rows<HD>(a1, near1, warp * 16, d);
            load_rows<HD>(a2, near2, warp * 16, d);
#pragma unroll
            for (int n = 0; n < COLUMNS; n += 16) {
                u32 f[4];
                load_columns<HD>(f, far1 + buffer, n, d);
                mma(s[n / 8], a1, f[0], f[1]);
                mma(s[n / 8 + 1], a1, f[2], f[3]);
                load_columns<HD>(f, far2 + buffer, n, d);
                mma(ds[n / 8], a2, f[0], f[1]);
                mma(ds[n / 8 + 1], a2, f[2], f[3]);
            }
        }
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = first + warp * 16 + (lane >> 2) + (i >> 1) * 8;
                int column = first_column + n * 8 + (lane & 3) * 2 + (i & 1);
                int query = KV ? column : row, key = KV ? row : column;
                float p = 0.0f, d = 0.0f;
                if (query < queries && key < keys) {
                    float score = s[n][i] * g.scale2;
                    if (bias2) score += bias2[(i64)group_of(query, g) * keys + key];
                    p = exp2f(score - lse[query]);
                    d = p * (ds[n][i] - delta[query]);
                }
                s[n][i] = p;
                ds[n][i] = d;
            }
#pragma unroll
        for (int n = 0; n < COLUMNS / 16; n++) {
            multiply<HD>(acc1, ds[2 * n], ds[2 * n + 1], far1 + buffer, n * 16);
            if constexpr (KV) multiply<HD>(acc2, s[2 * n], s[2 * n + 1], far2 + buffer, n * 16);
        }
        __syncthreads();
    }
    float scale[2] = {g.scale, g.scale}, one[2] = {1.0f, 1.0f};
    int at = first + warp * 16;
    write_rows<HD>(first_out, acc1, scale, text, stream, g, b, h, at, adds & 1, adds & 2);
    if constexpr (KV) write_rows<HD>(second_out, acc2, one, text, stream, g, b, h, at, adds & 4, adds & 8);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    attention_bwd_q_128_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                             const float* bias2, const Side<const bf16> d_o, const float* lse, const float* delta,
                             const Side<bf16> dq, const Side<bf16> unused, const Geometry g, int adds) {
    backward<128, false>(q, k, v, bias2, d_o, lse, delta, dq, unused, g, adds);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_bwd_q_64_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                            const float* bias2, const Side<const bf16> d_o, const float* lse, const float* delta,
                            const Side<bf16> dq, const Side<bf16> unused, const Geometry g, int adds) {
    backward<64, false>(q, k, v, bias2, d_o, lse, delta, dq, unused, g, adds);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_bwd_q_32_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                            const float* bias2, const Side<const bf16> d_o, const float* lse, const float* delta,
                            const Side<bf16> dq, const Side<bf16> unused, const Geometry g, int adds) {
    backward<32, false>(q, k, v, bias2, d_o, lse, delta, dq, unused, g, adds);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_bwd_kv_128_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                              const float* bias2, const Side<const bf16> d_o, const float* lse, const float* delta,
                              const Side<bf16> dk, const Side<bf16> dv, const Geometry g, int adds) {
    backward<128, true>(q, k, v, bias2, d_o, lse, delta, dk, dv, g, adds);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_bwd_kv_64_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                             const float* bias2, const Side<const bf16> d_o, const float* lse, const float* delta,
                             const Side<bf16> dk, const Side<bf16> dv, const Geometry g, int adds) {
    backward<64, true>(q, k, v, bias2, d_o, lse, delta, dk, dv, g, adds);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_bwd_kv_32_bf16(const Side<const bf16> q, const Side<const bf16> k, const Side<const bf16> v,
                             const float* bias2, const Side<const bf16> d_o, const float* lse, const float* delta,
                             const Side<bf16> dk, const Side<bf16> dv, const Geometry g, int adds) {
    backward<32, true>(q, k, v, bias2, d_o, lse, delta, dk, dv, g, adds);
}

// attention_bwd_delta: δ = Σ do·o of every query and head
// Shapes: o, d_o as attention_fwd's o (a side of d_o null: 0); delta [batch, heads, queries] f32.
// Layout: contiguous, values aligned to themselves; nothing overlaps.
// Grid: x ⌈queries/64⌉, y heads, z batch; blocks of 256: a warp takes 8 queries.
// Cost: 2·hd values read per query and head; bound by bandwidth.
// Traffic: a head whose rows begin amid a sector shares it with the head beside it; those of models do not.
// Idea: a warp's 8 sums leave together; a pass of its own until the product before it leaves δ behind.
extern "C" __global__ void __launch_bounds__(256)
    attention_bwd_delta_bf16(const Side<const bf16> o, const Side<const bf16> d_o, float* value, const Geometry g) {
    delta(o, d_o, value, g);
}
