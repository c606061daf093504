// Joint attention over text and stream tokens in true f32: the twin of attention.cu, for heads of up to 128.
#include "common/attention.cuh"

// A tile is 32 rows by 32 columns; a warp has 4 of the rows, a lane is a column, or a place in the head and the 3 that
// follow it 32 apart.
constexpr int SIDE = 32, MINE = 4, PITCH = SIDE + 1;

extern __shared__ __align__(16) float f32_memory[];

// 32 rows of head `h`, from joint row `first`, `pitch` apart; zero beyond the last, and where there are none.
__device__ __forceinline__ void fetch(float* to, const Side<const float>& from, int text, int stream, const Geometry& g,
                                      int b, int h, int first, int pitch) {
    // A warp per row: lanes that stood on two rows would meet in a bank, an odd pitch apart as they are.
    for (int row = threadIdx.x >> 5; row < SIDE; row += 8) {
        int j = first + row;
        bool there = j < text + stream && (j < text ? from.text : from.stream);
        const float* source = there ? row_of(from, text, stream, g, b, h, j) : nullptr;
        for (int c = threadIdx.x & 31; c < g.hd; c += 32) to[row * pitch + c] = there ? source[c] : 0.0f;
    }
}

// Σ over the head of row · this lane's row of `columns`, for the warp's rows.
__device__ __forceinline__ void scores(float (&s)[MINE], const float* rows, const float* columns, int hd, int pitch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int r = 0; r < MINE; r++) s[r] = 0.0f;
    for (int c = 0; c < hd; c++) {
        float v = columns[lane * pitch + c];
#pragma unroll
        for (int r = 0; r < MINE; r++) s[r] = fmaf(rows[(warp * MINE + r) * pitch + c], v, s[r]);
    }
}

// acc += weights · tile for the warp's rows, weights [32][32] in shared memory.
__device__ __forceinline__ void multiply(float (&acc)[MINE][4], const float* weights, const float* tile, int hd,
                                         int pitch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int j = 0; j < SIDE; j++) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = lane + i * 32 < hd ? tile[j * pitch + lane + i * 32] : 0.0f;
#pragma unroll
        for (int r = 0; r < MINE; r++) {
            float w = weights[(warp * MINE + r) * PITCH + j];
#pragma unroll
            for (int i = 0; i < 4; i++) acc[r][i] = fmaf(w, v[i], acc[r][i]);
        }
    }
}

__device__ __forceinline__ void write_rows(const Side<float>& to, const float (&acc)[MINE][4], const float (&by)[MINE],
                                           int text, int stream, const Geometry& g, int b, int h, int first,
                                           int adds_text, int adds_stream) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int r = 0; r < MINE; r++) {
        int j = first + warp * MINE + r;
        if (j >= text + stream || !(j < text ? to.text : to.stream)) continue;
        float* row = row_of(to, text, stream, g, b, h, j);
        bool adds = j < text ? adds_text : adds_stream;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int c = lane + i * 32;
            float v = acc[r][i] * by[r];
            if (c < g.hd) row[c] = adds ? row[c] + v : v;
        }
    }
}

// attention_fwd_f32: as attention_fwd_128 of attention.cu
// Shapes: as there, hd at most 128.
// Layout: contiguous f32, values aligned to themselves; o overlaps nothing.
// Grid: x ⌈queries/32⌉, y heads, z batch; blocks of 256.
// Cost: 4·queries·keys·hd FLOPs per head; bound by shared memory.
// Dynamic shared: 53760 bytes at most; 384·(hd | 1) + 4224 are used.
// Traffic: the other side's rows come once for every tile of this side's, from the L2 cache but for the first time.
// Idea: the plain form of the same scheme: scores of 32×32 in registers, their exponentials in shared memory.
extern "C" __global__ void __launch_bounds__(256, 2)
    attention_fwd_f32(const Side<const float> q, const Side<const float> k, const Side<const float> v,
                      const float* __restrict__ bias2, const Side<float> o, float* __restrict__ lse, const Geometry g) {
    int pitch = g.hd | 1, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, h = blockIdx.y, b = blockIdx.z;
    float *rows = f32_memory, *columns = rows + SIDE * pitch, *values = columns + SIDE * pitch,
          *p = values + SIDE * pitch;
    int first = blockIdx.x * SIDE, queries = g.q_text + g.q_stream, keys = g.k_text + g.k_stream;
    fetch(rows, q, g.q_text, g.q_stream, g, b, h, first, pitch);
    float acc[MINE][4] = {}, most[MINE], sum[MINE] = {}, s[MINE];
#pragma unroll
    for (int r = 0; r < MINE; r++) most[r] = MINUS_INFINITY;
    for (int at = 0; at < keys; at += SIDE) {
        __syncthreads();
        fetch(columns, k, g.k_text, g.k_stream, g, b, h, at, pitch);
        fetch(values, v, g.k_text, g.k_stream, g, b, h, at, pitch);
        __syncthreads();
        scores(s, rows, columns, g.hd, pitch);
        int key = at + lane;
#pragma unroll
        for (int r = 0; r < MINE; r++) {
            int query = first + warp * MINE + r;
            float v = MINUS_INFINITY;
            if (key < keys) {
                v = s[r] * g.scale2;
                if (bias2) v += bias2[(i64)group_of(query, g) * keys + key];
            }
            float top = v;
#pragma unroll
            for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
            top = fmaxf(top, most[r]);
            float base = top == MINUS_INFINITY ? 0.0f : top, keep = exp2f(most[r] - base);
            most[r] = top;
            float e = exp2f(v - base);
            sum[r] = sum[r] * keep + e;
            p[(warp * MINE + r) * PITCH + lane] = e;
#pragma unroll
            for (int i = 0; i < 4; i++) acc[r][i] *= keep;
        }
        __syncwarp();
        multiply(acc, p, values, g.hd, pitch);
    }
    float by[MINE];
#pragma unroll
    for (int r = 0; r < MINE; r++) {
        float total = warp_sum(sum[r]);
        by[r] = 1.0f / total;
        int query = first + warp * MINE + r;
        if (lane == 0 && query < queries) lse[((i64)b * g.heads + h) * queries + query] = most[r] + log2f(total);
    }
    write_rows(o, acc, by, g.q_text, g.q_stream, g, b, h, first, 0, 0);
}

// attention_bwd_q_f32, attention_bwd_kv_f32: as attention_bwd_q_128 and attention_bwd_kv_128 of attention.cu
// Shapes: as there, hd at most 128.
// Layout: contiguous f32, values aligned to themselves; the gradients overlap nothing.
// Grid: x ⌈queries/32⌉ (q) or ⌈keys/32⌉ (kv), y heads, z batch; blocks of 256.
// Cost: 6 (q), 8 (kv) ·queries·keys·hd FLOPs per head; bound by shared memory.
// Dynamic shared: 74496 bytes at most; 512·(hd | 1) + 8448 are used.
// Traffic: the other side's rows come once for every tile of this side's, from the L2 cache but for the first time.
// Idea: as there: one kernel, seen from either side.
template <bool KV>
__device__ __forceinline__ void backward(const Side<const float>& q, const Side<const float>& k,
                                         const Side<const float>& v, const float* __restrict__ bias2,
                                         const Side<const float>& d_o, const float* __restrict__ lse,
                                         const float* __restrict__ delta, const Side<float>& first_out,
                                         const Side<float>& second_out, const Geometry& g, int adds) {
    int pitch = g.hd | 1, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, h = blockIdx.y, b = blockIdx.z;
    float *near1 = f32_memory, *near2 = near1 + SIDE * pitch, *far1 = near2 + SIDE * pitch, *far2 = far1 + SIDE * pitch,
          *p = far2 + SIDE * pitch, *ds = p + SIDE * PITCH;
    int queries = g.q_text + g.q_stream, keys = g.k_text + g.k_stream, first = blockIdx.x * SIDE;
    int text = KV ? g.k_text : g.q_text, stream = KV ? g.k_stream : g.q_stream;
    int far_text = KV ? g.q_text : g.k_text, far_stream = KV ? g.q_stream : g.k_stream;
    lse += ((i64)b * g.heads + h) * queries;
    delta += ((i64)b * g.heads + h) * queries;
    fetch(near1, KV ? k : q, text, stream, g, b, h, first, pitch);
    fetch(near2, KV ? v : d_o, text, stream, g, b, h, first, pitch);
    float acc1[MINE][4] = {}, acc2[MINE][4] = {}, s[MINE], d[MINE];
    for (int at = 0; at < far_text + far_stream; at += SIDE) {
        __syncthreads();
        fetch(far1, KV ? q : k, far_text, far_stream, g, b, h, at, pitch);
        fetch(far2, KV ? d_o : v, far_text, far_stream, g, b, h, at, pitch);
        __syncthreads();
        scores(s, near1, far1, g.hd, pitch);
        scores(d, near2, far2, g.hd, pitch);
#pragma unroll
        for (int r = 0; r < MINE; r++) {
            int row = first + warp * MINE + r, query = KV ? at + lane : row, key = KV ? row : at + lane;
            float e = 0.0f, slope = 0.0f;
            if (query < queries && key < keys) {
                float score = s[r] * g.scale2;
                if (bias2) score += bias2[(i64)group_of(query, g) * keys + key];
                e = exp2f(score - lse[query]);
                slope = e * (d[r] - delta[query]);
            }
            ds[(warp * MINE + r) * PITCH + lane] = slope;
            if constexpr (KV) p[(warp * MINE + r) * PITCH + lane] = e;
        }
        __syncwarp();
        multiply(acc1, ds, far1, g.hd, pitch);
        if constexpr (KV) multiply(acc2, p, far2, g.hd, pitch);
    }
    float scale[MINE] = {g.scale, g.scale, g.scale, g.scale}, one[MINE] = {1.0f, 1.0f, 1.0f, 1.0f};
    write_rows(first_out, acc1, scale, text, stream, g, b, h, first, adds & 1, adds & 2);
    if constexpr (KV) write_rows(second_out, acc2, one, text, stream, g, b, h, first, adds & 4, adds & 8);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    attention_bwd_q_f32(const Side<const float> q, const Side<const float> k, const Side<const float> v,
                        const float* bias2, const Side<const float> d_o, const float* lse, const float* delta,
                        const Side<float> dq, const Side<float> unused, const Geometry g, int adds) {
    backward<false>(q, k, v, bias2, d_o, lse, delta, dq, unused, g, adds);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    attention_bwd_kv_f32(const Side<const float> q, const Side<const float> k, const Side<const float> v,
                         const float* bias2, const Side<const float> d_o, const float* lse, const float* delta,
                         const Side<float> dk, const Side<float> dv, const Geometry g, int adds) {
    backward<true>(q, k, v, bias2, d_o, lse, delta, dk, dv, g, adds);
}

// attention_bwd_delta_f32: as attention_bwd_delta of attention.cu
// Shapes: as there.
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: x ⌈queries/64⌉, y heads, z batch; blocks of 256: a warp takes 8 queries.
// Cost: 8·hd bytes read per query and head; bound by bandwidth.
// Traffic: a head whose rows begin amid a sector shares it with the head beside it; those of models do not.
// Idea: a warp's 8 sums leave together.
extern "C" __global__ void __launch_bounds__(256)
    attention_bwd_delta_f32(const Side<const float> o, const Side<const float> d_o, float* value, const Geometry g) {
    delta(o, d_o, value, g);
}
