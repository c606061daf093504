// LayerNorm without affine, then modulation: the CUDA side of src/ops/modulate.rs.
#include "common/reduce.cuh"
#include "common/tables.cuh"

constexpr float EPS = 1e-6f;
// Rows of a block of 4 warps; the widest row that is kept in shared memory between passes; FLUX.1's width.
constexpr int ROWS = 32, KEPT = 1024, FLUX = 3072;

// Calls f(first row, end, sample, token) for the runs of this block's rows that read one row of one table.
template <class F> __device__ __forceinline__ void each_run(const Tables& tables, int rows, int tokens, F f) {
    int begin = blockIdx.x * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
    while (begin < end) {
        int b = begin / tokens, t = begin % tokens;
        int stop = begin + (t < tables.split && tables.split < tokens ? tables.split - t : tokens - t);
        stop = stop < end ? stop : end;
        f(begin, stop, b, t);
        begin = stop;
    }
}

// A chunk of up to SIZE columns of a table in shared memory, laid out for reads of W neighbours per lane: where those
// are 8, the first and the last 4 of each 8 stand apart, so that a lane's neighbour reads the next 16 bytes, and they
// stand 16 banks apart, so that writes do not meet either.
template <int SIZE> struct Chunk {
    static constexpr int HALF = SIZE / 2 + 16;
    float value[SIZE + 16];

    // By the whole block, which has done with what was there.
    template <int W> __device__ __forceinline__ void fetch(const float* from, int d) {
        for (int c = threadIdx.x; c < d; c += 128)
            value[W == 8 ? (c >> 3) * 4 + (c & 3) + ((c >> 2) & 1) * HALF : c] = from[c];
    }
    template <int W> __device__ __forceinline__ void read(int c, float (&v)[W]) const {
        if constexpr (W == 1) {
            v[0] = value[c];
        } else if constexpr (W == 4) {
            load_piece(value + c, v);
        } else {
            float a[4], b[4];
            load_piece(value + c / 2, a);
            load_piece(value + HALF + c / 2, b);
#pragma unroll
            for (int k = 0; k < 4; k++) v[k] = a[k], v[k + 4] = b[k];
        }
    }
};

// The same where it lies in the table.
struct InPlace {
    const float* value;
    template <int W> __device__ __forceinline__ void read(int c, float (&v)[W]) const {
#pragma unroll
        for (int k = 0; k < W; k += 4) {
            if constexpr (W == 1) {
                v[0] = value[c];
            } else {
                float a[4];
                load_piece(value + c + k, a);
#pragma unroll
                for (int i = 0; i < 4; i++) v[k + i] = a[i];
            }
        }
    }
};

// W values as f32: eight, four, or one. A lane has as many as 16 bytes of x hold, of every row.
template <int W, class T> __device__ __forceinline__ void read(const T* p, float (&v)[W]) {
    if constexpr (W == 1)
        v[0] = load(p);
    else if constexpr (W == 4)
        load_four(p, v);
    else
        load_piece(p, v);
}
template <int W, class T> __device__ __forceinline__ void write(T* p, const float (&v)[W]) {
    if constexpr (W == 1)
        store(p, v[0]);
    else if constexpr (W == 4)
        store_four(p, v);
    else
        store_piece(p, v);
}

__device__ __forceinline__ float rstd_of(float squares, int d) { return 1.0f / sqrtf(squares / (float)d + EPS); }

// Mean and 1/σ of a row by one warp: the mean first, then the squares of what it leaves. STAGED: the row is left in
// `kept`; a lane reads only what it wrote there, so no barrier is needed.
template <int W, bool STAGED, class T>
__device__ __forceinline__ void row_stats(const T* x, T* kept, int d, float& mean, float& rstd) {
    int first = (threadIdx.x & 31) * W;
    float sum = 0.0f, squares = 0.0f;
    for (int c = first; c < d; c += 32 * W) {
        float v[W];
        read<W>(x + c, v);
        if (STAGED) write<W>(kept + c, v);
#pragma unroll
        for (int k = 0; k < W; k++) sum += v[k];
    }
    mean = warp_sum(sum) / (float)d;
    for (int c = first; c < d; c += 32 * W) {
        float v[W];
        read<W>(STAGED ? kept + c : x + c, v);
#pragma unroll
        for (int k = 0; k < W; k++) squares += (v[k] - mean) * (v[k] - mean);
    }
    rstd = rstd_of(warp_sum(squares), d);
}

// One row of y by one warp.
template <int W, bool STAGED, class X, class Y, class C>
__device__ __forceinline__ void row_forward(const X* x, Y* y, X* kept, const C& add, const C& mul, int d) {
    float mean, rstd;
    row_stats<W, STAGED>(x, kept, d, mean, rstd);
    for (int c = (threadIdx.x & 31) * W; c < d; c += 32 * W) {
        float v[W], s[W], h[W];
        read<W>(STAGED ? kept + c : x + c, v);
        mul.template read<W>(c, s);
        add.template read<W>(c, h);
#pragma unroll
        for (int k = 0; k < W; k++) v[k] = (v[k] - mean) * rstd * (1.0f + s[k]) + h[k];
        write<W>(y + c, v);
    }
}

// ln_modulate_fwd: y = LN(x)·(1 + scale) + shift, ε = 1e-6, for any width; mixed: x f32, y bf16
// Shapes: x, y [batch·tokens, d]; image [image rows, image_width], cond [cond rows, cond_width], both f32;
//   image_row, cond_row [batch]. shift, scale: which chunk of d columns. cond, cond_row null where split ≥ tokens.
// Layout: row-major, contiguous; 16 bytes at a time where d is a multiple of a piece (4 f32, 8 bf16) and all are
//   aligned to them; y may be x.
// Grid: ⌈batch·tokens/32⌉ blocks of 128: 8 rows to a warp.
// Cost: 2·d values moved per row and 1/16 of a row of f32 from the tables, 9·d FLOPs; bound by bandwidth. Rows wider
//   than 1024 are read three times, the tables for every row; both from a cache, if it is large enough.
// Traffic: a row wider than 1024 is read again by the warp that has just read it, and the tables by every row, both
//   from a cache; the width that models have, 3072, has a kernel of its own.
// Idea: a warp owns its row and keeps it in shared memory, so that the passes of the variance and the output need
//   neither a barrier nor memory again; a block's rows share their chunks of the table.
template <class X, class Y>
__device__ __forceinline__ void forward(const X* x, const Tables& tables, Y* y, int rows, int tokens, int d, int shift,
                                        int scale) {
    constexpr int N = Piece<X>::N;
    __shared__ __align__(16) X kept[4][KEPT];
    __shared__ __align__(16) Chunk<KEPT> chunks[2];
    int warp = threadIdx.x >> 5;
    bool staged = d <= KEPT, pieces = d % N == 0 && aligned(x, y);
    each_run(tables, rows, tokens, [&](int begin, int end, int b, int t) {
        const float *add = tables.chunk(b, t, d, shift), *mul = tables.chunk(b, t, d, scale);
        if (staged) {
            __syncthreads();
            if (pieces) {
                chunks[0].template fetch<N>(add, d);
                chunks[1].template fetch<N>(mul, d);
            } else {
                chunks[0].template fetch<1>(add, d);
                chunks[1].template fetch<1>(mul, d);
            }
            __syncthreads();
        }
        for (int row = begin + warp; row < end; row += 4) {
            const X* from = x + (i64)row * d;
            Y* to = y + (i64)row * d;
            if (staged && pieces)
                row_forward<N, true>(from, to, kept[warp], chunks[0], chunks[1], d);
            else if (staged)
                row_forward<1, true>(from, to, kept[warp], chunks[0], chunks[1], d);
            else if (pieces && aligned(add, mul))
                row_forward<N, false>(from, to, kept[warp], InPlace{add}, InPlace{mul}, d);
            else
                row_forward<1, false>(from, to, kept[warp], InPlace{add}, InPlace{mul}, d);
        }
    });
}

extern "C" __global__ void __launch_bounds__(128, 4)
    ln_modulate_fwd_f32(const float* x, const Tables tables, float* y, int rows, int tokens, int d, int shift,
                        int scale) {
    forward(x, tables, y, rows, tokens, d, shift, scale);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    ln_modulate_fwd_bf16(const bf16* x, const Tables tables, bf16* y, int rows, int tokens, int d, int shift,
                         int scale) {
    forward(x, tables, y, rows, tokens, d, shift, scale);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    ln_modulate_fwd_mixed(const float* x, const Tables tables, bf16* y, int rows, int tokens, int d, int shift,
                          int scale) {
    forward(x, tables, y, rows, tokens, d, shift, scale);
}

// W neighbours of a row, as they lie in memory: 16 bytes, or 4 bf16.
template <class T, int W> struct Raw {
    Bytes16 bytes;
    __device__ __forceinline__ void unpack(float (&v)[W]) const { Piece<T>::unpack(bytes, v); }
};
template <> struct Raw<bf16, 4> {
    uint2 bytes;
    __device__ __forceinline__ void unpack(float (&v)[4]) const {
        v[0] = low(bytes.x), v[1] = high(bytes.x), v[2] = low(bytes.y), v[3] = high(bytes.y);
    }
};

// The pieces of a row of 3072 that a lane has, N neighbours each.
template <class T, int N> struct Row {
    static constexpr int PIECES = FLUX / N / 32;
    Raw<T, N> piece[PIECES];

    __device__ __forceinline__ explicit Row(const T* row) {
        const Raw<T, N>* from = reinterpret_cast<const Raw<T, N>*>(row) + (threadIdx.x & 31);
#pragma unroll
        for (int i = 0; i < PIECES; i++) piece[i] = from[i * 32];
    }
    // Calls f(column, values[N], piece number).
    template <class F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            float v[N];
            piece[i].unpack(v);
            f((i * 32 + (int)(threadIdx.x & 31)) * N, v, i);
        }
    }
    __device__ __forceinline__ void stats(float& mean, float& rstd) const {
        float sum = 0.0f, squares = 0.0f;
        each([&](int, float(&v)[N], int) {
#pragma unroll
            for (int k = 0; k < N; k++) sum += v[k];
        });
        mean = warp_sum(sum) / (float)FLUX;
        float m = mean;
        each([&](int, float(&v)[N], int) {
#pragma unroll
            for (int k = 0; k < N; k++) squares += (v[k] - m) * (v[k] - m);
        });
        rstd = rstd_of(warp_sum(squares), FLUX);
    }
};

// ln_modulate_fwd_3072: ln_modulate_fwd for d = 3072, FLUX.1's width
// Shapes: as ln_modulate_fwd, d = 3072.
// Layout: as ln_modulate_fwd; x and y aligned to 16 bytes.
// Grid: ⌈batch·tokens/32⌉ blocks of 128: 8 rows to a warp.
// Cost: 12 KB moved per row in bf16, 18 mixed, 24 in f32, and 1/16 of 12 KB from the tables; bound by bandwidth.
// Idea: the whole row waits in registers as it was loaded (48 of them in bf16), every load in flight at once; memory is
//   read once.
template <class X, class Y>
__device__ __forceinline__ void forward_3072(const X* x, const Tables& tables, Y* y, int rows, int tokens, int shift,
                                             int scale) {
    constexpr int N = Piece<X>::N;
    __shared__ __align__(16) Chunk<FLUX> chunks[2];
    each_run(tables, rows, tokens, [&](int begin, int end, int b, int t) {
        __syncthreads();
        chunks[0].template fetch<N>(tables.chunk(b, t, FLUX, shift), FLUX);
        chunks[1].template fetch<N>(tables.chunk(b, t, FLUX, scale), FLUX);
        __syncthreads();
        for (int row = begin + (threadIdx.x >> 5); row < end; row += 4) {
            Row<X, N> kept(x + (i64)row * FLUX);
            Y* to = y + (i64)row * FLUX;
            float mean, rstd;
            kept.stats(mean, rstd);
            kept.each([&](int c, float(&v)[N], int) {
                float s[N], h[N];
                chunks[1].template read<N>(c, s);
                chunks[0].template read<N>(c, h);
#pragma unroll
                for (int k = 0; k < N; k++) v[k] = (v[k] - mean) * rstd * (1.0f + s[k]) + h[k];
                write<N>(to + c, v);
            });
        }
    });
}

extern "C" __global__ void __launch_bounds__(128, 3)
    ln_modulate_fwd_3072_f32(const float* x, const Tables tables, float* y, int rows, int tokens, int shift,
                             int scale) {
    forward_3072(x, tables, y, rows, tokens, shift, scale);
}
extern "C" __global__ void __launch_bounds__(128, 3)
    ln_modulate_fwd_3072_bf16(const bf16* x, const Tables tables, bf16* y, int rows, int tokens, int shift,
                              int scale) {
    forward_3072(x, tables, y, rows, tokens, shift, scale);
}
extern "C" __global__ void __launch_bounds__(128, 3)
    ln_modulate_fwd_3072_mixed(const float* x, const Tables tables, bf16* y, int rows, int tokens, int shift,
                               int scale) {
    forward_3072(x, tables, y, rows, tokens, shift, scale);
}

// One row of dx by one warp; kept, kept_dy: room for the row of x and that of dy.
template <int W, bool STAGED, class X, class Y, class C>
__device__ __forceinline__ void row_backward(const X* x, const Y* dy, X* dx, X* kept, Y* kept_dy, const C& mul,
                                             float2* stats, int d, int accumulate) {
    int lane = threadIdx.x & 31;
    float mean, rstd, sum_g = 0.0f, sum_gx = 0.0f;
    row_stats<W, STAGED>(x, kept, d, mean, rstd);
    if (stats && lane == 0) *stats = make_float2(mean, rstd);
    for (int c = lane * W; c < d; c += 32 * W) {
        float v[W], s[W], g[W];
        read<W>(STAGED ? kept + c : x + c, v);
        mul.template read<W>(c, s);
        read<W>(dy + c, g);
        if (STAGED) write<W>(kept_dy + c, g);
#pragma unroll
        for (int k = 0; k < W; k++) {
            float gk = g[k] * (1.0f + s[k]);
            sum_g += gk;
            sum_gx += gk * ((v[k] - mean) * rstd);
        }
    }
    float mean_g = warp_sum(sum_g) / (float)d, mean_gx = warp_sum(sum_gx) / (float)d;
    for (int c = lane * W; c < d; c += 32 * W) {
        float v[W], s[W], g[W], old[W];
        read<W>(STAGED ? kept + c : x + c, v);
        mul.template read<W>(c, s);
        read<W>(STAGED ? kept_dy + c : dy + c, g);
        if (accumulate) read<W>(dx + c, old);
#pragma unroll
        for (int k = 0; k < W; k++) {
            v[k] = rstd * (g[k] * (1.0f + s[k]) - mean_g - (v[k] - mean) * rstd * mean_gx);
            if (accumulate) v[k] += old[k];
        }
        write<W>(dx + c, v);
    }
}

// ln_modulate_bwd: dx = (g − mean g − x̂·mean(g·x̂))/σ with g = dy·(1 + scale), x̂ = LN(x); added where accumulate ≠ 0;
//   mixed: x and dx f32, dy bf16
// Shapes: x, dy, dx [batch·tokens, d]; tables as ln_modulate_fwd's; stats [batch·tokens] (mean, 1/σ) f32, or null.
// Layout: row-major, contiguous; 16 bytes at a time as in ln_modulate_fwd, stats aligned to 8; dx may be dy where
//   accumulate = 0.
// Grid: ⌈batch·tokens/32⌉ blocks of 128: 8 rows to a warp.
// Cost: 3·d values moved per row (4·d accumulating) and 1/32 of a row of f32 from the table, 20·d FLOPs; bound by
//   bandwidth. Rows wider than 1024 are read more than once, as in ln_modulate_fwd.
// Traffic: a warp reads a row wider than 1024 four times and its dy twice, all but the first time from a cache; two
//   rows of such a width leave a warp neither registers nor shared memory, and the width that is trained with beside
//   bf16 has ln_modulate_bwd_3072.
// Idea: as in ln_modulate_fwd, both means in one pass; the row's statistics are left for ln_modulate_bwd_tables.
template <class X, class Y>
__device__ __forceinline__ void backward(const X* x, const Y* dy, const Tables& tables, X* dx, float2* stats, int rows,
                                         int tokens, int d, int scale, int accumulate) {
    constexpr int N = Piece<X>::N;
    __shared__ __align__(16) X kept[4][KEPT];
    __shared__ __align__(16) Y kept_dy[4][KEPT];
    __shared__ __align__(16) Chunk<KEPT> chunk;
    int warp = threadIdx.x >> 5;
    bool staged = d <= KEPT, pieces = d % N == 0 && aligned(x, dy, dx);
    each_run(tables, rows, tokens, [&](int begin, int end, int b, int t) {
        const float* mul = tables.chunk(b, t, d, scale);
        if (staged) {
            __syncthreads();
            if (pieces)
                chunk.template fetch<N>(mul, d);
            else
                chunk.template fetch<1>(mul, d);
            __syncthreads();
        }
        for (int row = begin + warp; row < end; row += 4) {
            i64 at = (i64)row * d;
            float2* to = stats ? stats + row : nullptr;
            X* room = kept[warp];
            Y* room_dy = kept_dy[warp];
            if (staged && pieces)
                row_backward<N, true>(x + at, dy + at, dx + at, room, room_dy, chunk, to, d, accumulate);
            else if (staged)
                row_backward<1, true>(x + at, dy + at, dx + at, room, room_dy, chunk, to, d, accumulate);
            else if (pieces && aligned(mul))
                row_backward<N, false>(x + at, dy + at, dx + at, room, room_dy, InPlace{mul}, to, d, accumulate);
            else
                row_backward<1, false>(x + at, dy + at, dx + at, room, room_dy, InPlace{mul}, to, d, accumulate);
        }
    });
}

extern "C" __global__ void __launch_bounds__(128, 4)
    ln_modulate_bwd_f32(const float* x, const float* dy, const Tables tables, float* dx, float2* stats, int rows,
                        int tokens, int d, int scale, int accumulate) {
    backward(x, dy, tables, dx, stats, rows, tokens, d, scale, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    ln_modulate_bwd_bf16(const bf16* x, const bf16* dy, const Tables tables, bf16* dx, float2* stats, int rows,
                         int tokens, int d, int scale, int accumulate) {
    backward(x, dy, tables, dx, stats, rows, tokens, d, scale, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    ln_modulate_bwd_mixed(const float* x, const bf16* dy, const Tables tables, float* dx, float2* stats, int rows,
                          int tokens, int d, int scale, int accumulate) {
    backward(x, dy, tables, dx, stats, rows, tokens, d, scale, accumulate);
}

// ln_modulate_bwd_3072: ln_modulate_bwd for d = 3072, FLUX.1's width, where dy is bf16
// Shapes: as ln_modulate_bwd, d = 3072.
// Layout: as ln_modulate_bwd; x, dy and dx aligned to 16 bytes.
// Grid: ⌈batch·tokens/32⌉ blocks of 128: 8 rows to a warp.
// Cost: 18 KB moved per row (24 accumulating), mixed 30 (42), and 1/32 of 12 KB from the table; bound by bandwidth.
// Idea: both rows wait in registers as they were loaded, 96 of them, mixed 144; two of f32 would not fit.
template <class X>
__device__ __forceinline__ void backward_3072(const X* x, const bf16* dy, const Tables& tables, X* dx, float2* stats,
                                              int rows, int tokens, int scale, int accumulate) {
    constexpr int N = Piece<X>::N;
    __shared__ __align__(16) Chunk<FLUX> chunk;
    each_run(tables, rows, tokens, [&](int begin, int end, int b, int t) {
        __syncthreads();
        chunk.template fetch<N>(tables.chunk(b, t, FLUX, scale), FLUX);
        __syncthreads();
        for (int row = begin + (threadIdx.x >> 5); row < end; row += 4) {
            Row<X, N> kept(x + (i64)row * FLUX);
            Row<bf16, N> kept_dy(dy + (i64)row * FLUX);
            X* to = dx + (i64)row * FLUX;
            float mean, rstd, sum_g = 0.0f, sum_gx = 0.0f;
            kept.stats(mean, rstd);
            if (stats && (threadIdx.x & 31) == 0) stats[row] = make_float2(mean, rstd);
            kept.each([&](int c, float(&v)[N], int i) {
                float g[N], s[N];
                kept_dy.piece[i].unpack(g);
                chunk.template read<N>(c, s);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    float gk = g[k] * (1.0f + s[k]);
                    sum_g += gk;
                    sum_gx += gk * ((v[k] - mean) * rstd);
                }
            });
            float mean_g = warp_sum(sum_g) / (float)FLUX, mean_gx = warp_sum(sum_gx) / (float)FLUX;
            kept.each([&](int c, float(&v)[N], int i) {
                float g[N], s[N], old[N];
                kept_dy.piece[i].unpack(g);
                chunk.template read<N>(c, s);
                if (accumulate) read<N>(to + c, old);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    v[k] = rstd * (g[k] * (1.0f + s[k]) - mean_g - (v[k] - mean) * rstd * mean_gx);
                    if (accumulate) v[k] += old[k];
                }
                write<N>(to + c, v);
            });
        }
    });
}

extern "C" __global__ void __launch_bounds__(128, 2)
    ln_modulate_bwd_3072_bf16(const bf16* x, const bf16* dy, const Tables tables, bf16* dx, float2* stats, int rows,
                              int tokens, int scale, int accumulate) {
    backward_3072(x, dy, tables, dx, stats, rows, tokens, scale, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    ln_modulate_bwd_3072_mixed(const float* x, const bf16* dy, const Tables tables, float* dx, float2* stats, int rows,
                               int tokens, int scale, int accumulate) {
    backward_3072(x, dy, tables, dx, stats, rows, tokens, scale, accumulate);
}

// ln_modulate_bwd_tables: dshift = Σ dy, dscale = Σ dy·x̂, per table row over the tokens that read it; mixed: x f32, dy
//   bf16
// Shapes: x, dy [batch·tokens, d]; stats [batch·tokens] (mean, 1/σ); row_of [batch]: each sample's table row; dtable
//   [rows, width] f32, of which columns shift·d .. and scale·d .. are written, or added to where accumulate ≠ 0.
//   The other columns are left alone: to be zeroed by who begins the table's gradient.
//   begin .. end: the tokens that read this table (0 .. split the image's, split .. tokens the condition's).
// Layout: row-major, contiguous, values aligned to themselves; nothing overlaps.
// Grid: x ⌈d/32⌉, y the table's rows; blocks of 256.
// Cost: 2·d values read per token, once for each table; 5·d FLOPs; bound by bandwidth.
// Idea: 8 warps take every eighth token of 32 columns and meet in shared memory: coalesced, no atomics, fixed order;
//   the tokens' statistics are fetched once per block.
template <class X, class Y>
__device__ __forceinline__ void tables_backward(const X* x, const Y* dy, const float2* stats, const int* row_of,
                                                float* dtable, int batch, int tokens, int begin, int end, int d,
                                                int width, int shift, int scale, int accumulate) {
    __shared__ float sums[2][8][32];
    __shared__ float2 near[256]; // the statistics of 256 tokens
    __shared__ u32 reading;      // which of 32 samples read this row
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int c = blockIdx.x * 32 + lane, row = blockIdx.y;
    float sum = 0.0f, sum_x = 0.0f;
    for (int b0 = 0; b0 < batch; b0 += 32) {
        __syncthreads();
        if (warp == 0) {
            u32 found = __ballot_sync(0xffffffffu, b0 + lane < batch && row_of[b0 + lane] == row);
            if (lane == 0) reading = found;
        }
        __syncthreads();
        for (u32 readers = reading; readers; readers &= readers - 1) {
            i64 sample = (i64)(b0 + __ffs(readers) - 1) * tokens;
            for (int first = begin; first < end; first += 256) {
                int count = end - first < 256 ? end - first : 256;
                __syncthreads();
                if ((int)threadIdx.x < count) near[threadIdx.x] = stats[sample + first + threadIdx.x];
                __syncthreads();
                if (c >= d) continue;
#pragma unroll 4
                for (int i = warp; i < count; i += 8) {
                    i64 at = (sample + first + i) * d + c;
                    float g = load(dy + at);
                    sum += g;
                    sum_x += g * ((load(x + at) - near[i].x) * near[i].y);
                }
            }
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
extern "C" __global__ void __launch_bounds__(256)
    ln_modulate_bwd_tables_mixed(const float* x, const bf16* dy, const float2* stats, const int* row_of, float* dtable,
                                 int batch, int tokens, int begin, int end, int d, int width, int shift, int scale,
                                 int accumulate) {
    tables_backward(x, dy, stats, row_of, dtable, batch, tokens, begin, end, d, width, shift, scale, accumulate);
}
