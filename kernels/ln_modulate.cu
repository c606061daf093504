// LayerNorm without affine, then modulation: the CUDA side of src/ops/modulate.rs.
#include "common/reduce.cuh"

constexpr float EPS = 1e-6f;

// Where a token's shift and scale stand: image tokens (t < split) of sample b read row image_row[b] of the image table,
// the others row cond_row[b] of the condition table. Rows are `width` values; a chunk is d of them.
template <class T> struct Tables {
    const T* image;
    const T* cond;
    const int* image_row;
    const int* cond_row;
    int image_width;
    int cond_width;
    int split;

    __device__ __forceinline__ const T* chunk(int b, int t, int d, int index) const {
        return t < split ? image + (i64)image_row[b] * image_width + (i64)index * d
                         : cond + (i64)cond_row[b] * cond_width + (i64)index * d;
    }
};

// Calls f(column, values[N]) for this lane's pieces of a row of d values, which is whole aligned pieces.
template <class T, class F> __device__ __forceinline__ void each_piece(const T* row, int d, F f) {
    constexpr int N = Piece<T>::N;
    int lane = threadIdx.x & 31;
    for (int c = lane * N; c < d; c += 32 * N) {
        float v[N];
        load_piece(row + c, v);
        f(c, v);
    }
}

__device__ __forceinline__ float rstd_of(float squares, int d) {
    return 1.0f / sqrtf(squares / (float)d + EPS);
}

// Mean and 1/σ of a row by one warp: the mean first, then the squares of what it leaves. `whole`: in whole pieces.
template <class T>
__device__ __forceinline__ void row_stats(const T* x, int d, bool whole, float& mean, float& rstd) {
    constexpr int N = Piece<T>::N;
    float sum = 0.0f, squares = 0.0f;
    if (whole) {
        each_piece(x, d, [&](int, float(&v)[N]) {
#pragma unroll
            for (int k = 0; k < N; k++) sum += v[k];
        });
        mean = warp_sum(sum) / (float)d;
        each_piece(x, d, [&](int, float(&v)[N]) {
#pragma unroll
            for (int k = 0; k < N; k++) squares += (v[k] - mean) * (v[k] - mean);
        });
    } else {
        for (int c = threadIdx.x & 31; c < d; c += 32) sum += load(x + c);
        mean = warp_sum(sum) / (float)d;
        for (int c = threadIdx.x & 31; c < d; c += 32) {
            float r = load(x + c) - mean;
            squares += r * r;
        }
    }
    rstd = rstd_of(warp_sum(squares), d);
}

// ln_modulate_fwd: y = LN(x)·(1 + scale) + shift, ε = 1e-6, for any width
// Shapes: x, y [batch·tokens, d]; image [image rows, image_width], cond [cond rows, cond_width];
//   image_row, cond_row [batch]. shift, scale: which chunk of d columns. cond, cond_row null where split ≥ tokens.
// Layout: row-major, contiguous; 16 bytes at a time where d is a multiple of a piece (4 f32, 8 bf16) and all are
//   aligned to them; y may be x.
// Grid: ⌈batch·tokens/4⌉ blocks of 128: one warp per row.
// Cost: 2·d values moved per row (tables stay in cache), 9·d FLOPs; bound by bandwidth.
// Idea: a warp owns its row, so both passes of the variance and the output need no barrier, and rereads hit L1.
template <class T>
__device__ __forceinline__ void forward(const T* x, const Tables<T>& tables, T* y, int rows, int tokens, int d,
                                        int shift, int scale) {
    constexpr int N = Piece<T>::N;
    int row = blockIdx.x * 4 + (threadIdx.x >> 5);
    if (row >= rows) return;
    int b = row / tokens, t = row % tokens;
    const T *add = tables.chunk(b, t, d, shift), *mul = tables.chunk(b, t, d, scale);
    x += (i64)row * d;
    y += (i64)row * d;
    float mean, rstd;
    bool whole = d % N == 0 && aligned(x, y, add, mul);
    row_stats(x, d, whole, mean, rstd);
    if (whole) {
        each_piece(x, d, [&](int c, float(&v)[N]) {
            float s[N], h[N];
            load_piece(mul + c, s);
            load_piece(add + c, h);
#pragma unroll
            for (int k = 0; k < N; k++) v[k] = (v[k] - mean) * rstd * (1.0f + s[k]) + h[k];
            store_piece(y + c, v);
        });
    } else {
        for (int c = threadIdx.x & 31; c < d; c += 32)
            store(y + c, (load(x + c) - mean) * rstd * (1.0f + load(mul + c)) + load(add + c));
    }
}

extern "C" __global__ void __launch_bounds__(128)
    ln_modulate_fwd_f32(const float* x, const Tables<float> tables, float* y, int rows, int tokens, int d, int shift,
                        int scale) {
    forward(x, tables, y, rows, tokens, d, shift, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    ln_modulate_fwd_bf16(const bf16* x, const Tables<bf16> tables, bf16* y, int rows, int tokens, int d, int shift,
                         int scale) {
    forward(x, tables, y, rows, tokens, d, shift, scale);
}

// ln_modulate_fwd_3072: ln_modulate_fwd for d = 3072, FLUX.1's width
// Shapes: as ln_modulate_fwd, d = 3072.
// Layout: as ln_modulate_fwd, all of it aligned to 16 bytes.
// Grid: ⌈batch·tokens/4⌉ blocks of 128: one warp per row.
// Cost: 12 KB moved per row in bf16, 24 in f32; bound by bandwidth.
// Idea: the whole row waits in registers as it was loaded (48 of them in bf16), every load in flight at once; memory is
//   read once.
template <class T>
__device__ __forceinline__ void forward_3072(const T* x, const Tables<T>& tables, T* y, int rows, int tokens,
                                             int shift, int scale) {
    constexpr int N = Piece<T>::N, D = 3072, PIECES = D / N / 32;
    int row = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    int b = row / tokens, t = row % tokens;
    const Bytes16* from = reinterpret_cast<const Bytes16*>(x + (i64)row * D) + lane;
    Bytes16 kept[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) kept[i] = from[i * 32];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[N];
        Piece<T>::unpack(kept[i], v);
#pragma unroll
        for (int k = 0; k < N; k++) sum += v[k];
    }
    float mean = warp_sum(sum) / (float)D;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[N];
        Piece<T>::unpack(kept[i], v);
#pragma unroll
        for (int k = 0; k < N; k++) squares += (v[k] - mean) * (v[k] - mean);
    }
    float rstd = rstd_of(warp_sum(squares), D);
    const T *add = tables.chunk(b, t, D, shift), *mul = tables.chunk(b, t, D, scale);
    y += (i64)row * D;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int c = (i * 32 + lane) * N;
        float v[N], s[N], h[N];
        Piece<T>::unpack(kept[i], v);
        load_piece(mul + c, s);
        load_piece(add + c, h);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = (v[k] - mean) * rstd * (1.0f + s[k]) + h[k];
        store_piece(y + c, v);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    ln_modulate_fwd_3072_f32(const float* x, const Tables<float> tables, float* y, int rows, int tokens, int shift,
                             int scale) {
    forward_3072(x, tables, y, rows, tokens, shift, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    ln_modulate_fwd_3072_bf16(const bf16* x, const Tables<bf16> tables, bf16* y, int rows, int tokens, int shift,
                              int scale) {
    forward_3072(x, tables, y, rows, tokens, shift, scale);
}

// ln_modulate_bwd: dx = (g − mean g − x̂·mean(g·x̂))/σ with g = dy·(1 + scale), x̂ = LN(x); added where accumulate ≠ 0
// Shapes: x, dy, dx [batch·tokens, d]; tables as ln_modulate_fwd's; stats [batch·tokens] (mean, 1/σ) f32, or null.
// Layout: row-major, contiguous; 16 bytes at a time as in ln_modulate_fwd, stats aligned to 8; dx may be dy where
//   accumulate = 0.
// Grid: ⌈batch·tokens/4⌉ blocks of 128: one warp per row.
// Cost: 3·d values moved per row (4·d accumulating), 20·d FLOPs; bound by bandwidth.
// Idea: a warp per row, both means in one pass; the row's statistics are left for ln_modulate_bwd_tables.
template <class T>
__device__ __forceinline__ void backward(const T* x, const T* dy, const Tables<T>& tables, T* dx, float2* stats,
                                         int rows, int tokens, int d, int scale, int accumulate) {
    constexpr int N = Piece<T>::N;
    int row = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    const T* mul = tables.chunk(row / tokens, row % tokens, d, scale);
    x += (i64)row * d;
    dy += (i64)row * d;
    dx += (i64)row * d;
    float mean, rstd;
    bool whole = d % N == 0 && aligned(x, dy, dx, mul);
    row_stats(x, d, whole, mean, rstd);
    if (stats && lane == 0) stats[row] = make_float2(mean, rstd);
    float sum_g = 0.0f, sum_gx = 0.0f;
    if (whole) {
        each_piece(x, d, [&](int c, float(&v)[N]) {
            float s[N], g[N];
            load_piece(mul + c, s);
            load_piece(dy + c, g);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float gk = g[k] * (1.0f + s[k]);
                sum_g += gk;
                sum_gx += gk * ((v[k] - mean) * rstd);
            }
        });
    } else {
        for (int c = lane; c < d; c += 32) {
            float gk = load(dy + c) * (1.0f + load(mul + c));
            sum_g += gk;
            sum_gx += gk * ((load(x + c) - mean) * rstd);
        }
    }
    float mean_g = warp_sum(sum_g) / (float)d, mean_gx = warp_sum(sum_gx) / (float)d;
    if (whole) {
        each_piece(x, d, [&](int c, float(&v)[N]) {
            float s[N], g[N], old[N];
            load_piece(mul + c, s);
            load_piece(dy + c, g);
            if (accumulate) load_piece(dx + c, old);
#pragma unroll
            for (int k = 0; k < N; k++) {
                v[k] = rstd * (g[k] * (1.0f + s[k]) - mean_g - (v[k] - mean) * rstd * mean_gx);
                if (accumulate) v[k] += old[k];
            }
            store_piece(dx + c, v);
        });
    } else {
        for (int c = lane; c < d; c += 32) {
            float g = load(dy + c) * (1.0f + load(mul + c));
            float v = rstd * (g - mean_g - (load(x + c) - mean) * rstd * mean_gx);
            store(dx + c, accumulate ? v + load(dx + c) : v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
    ln_modulate_bwd_f32(const float* x, const float* dy, const Tables<float> tables, float* dx, float2* stats, int rows,
                        int tokens, int d, int scale, int accumulate) {
    backward(x, dy, tables, dx, stats, rows, tokens, d, scale, accumulate);
}
extern "C" __global__ void __launch_bounds__(128)
    ln_modulate_bwd_bf16(const bf16* x, const bf16* dy, const Tables<bf16> tables, bf16* dx, float2* stats, int rows,
                         int tokens, int d, int scale, int accumulate) {
    backward(x, dy, tables, dx, stats, rows, tokens, d, scale, accumulate);
}

// ln_modulate_bwd_tables: dshift = Σ dy, dscale = Σ dy·x̂, per table row over the tokens that read it
// Shapes: x, dy [batch·tokens, d]; stats [batch·tokens] (mean, 1/σ); row_of [batch]: each sample's table row; dtable
//   [rows, width] f32, of which columns shift·d .. and scale·d .. are written, or added to where accumulate ≠ 0.
//   The other columns are left alone: to be zeroed by who begins the table's gradient.
//   begin .. end: the tokens that read this table (0 .. split the image's, split .. tokens the condition's).
// Layout: row-major, contiguous, values aligned to themselves; nothing overlaps.
// Grid: x ⌈d/32⌉, y the table's rows; blocks of 256.
// Cost: 2·d values read per token, once for each table; 5·d FLOPs; bound by bandwidth.
// Idea: 8 warps take every eighth token of 32 columns and meet in shared memory: coalesced, no atomics, fixed order.
template <class T>
__device__ __forceinline__ void tables_backward(const T* x, const T* dy, const float2* stats, const int* row_of,
                                                float* dtable, int batch, int tokens, int begin, int end, int d,
                                                int width, int shift, int scale, int accumulate) {
    __shared__ float sums[2][8][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int c = blockIdx.x * 32 + lane, row = blockIdx.y;
    float sum = 0.0f, sum_x = 0.0f;
    for (int b = 0; b < batch; b++) {
        if (row_of[b] != row) continue;
        for (int t = begin + warp; t < end; t += 8) {
            i64 at = (i64)b * tokens + t;
            float2 s = stats[at];
            if (c >= d) continue;
            float g = load(dy + at * d + c);
            sum += g;
            sum_x += g * ((load(x + at * d + c) - s.x) * s.y);
        }
    }
    sums[0][warp][lane] = sum;
    sums[1][warp][lane] = sum_x;
    __syncthreads();
    if (warp < 2 && c < d) {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) total += sums[warp][i][lane];
        float* to = dtable + (i64)row * width + (i64)(warp == 0 ? shift : scale) * d + c;
        *to = accumulate ? *to + total : total;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    ln_modulate_bwd_tables_f32(const float* x, const float* dy, const float2* stats, const int* row_of, float* dtable,
                               int batch, int tokens, int begin, int end, int d, int width, int shift, int scale,
                               int accumulate) {
    tables_backward(x, dy, stats, row_of, dtable, batch, tokens, begin, end, d, width, shift, scale, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    ln_modulate_bwd_tables_bf16(const bf16* x, const bf16* dy, const float2* stats, const int* row_of, float* dtable,
                                int batch, int tokens, int begin, int end, int d, int width, int shift, int scale,
                                int accumulate) {
    tables_backward(x, dy, stats, row_of, dtable, batch, tokens, begin, end, d, width, shift, scale, accumulate);
}
