// What the linear layer's kernels share in either dtype: a product's extents, which rows adapters act on, what happens
// to a value before it is stored.
#pragma once
#include "common/gelu.cuh"
#include "common/rope.cuh"
#include "common/tables.cuh"

// C = A·B (+ bias) (+ C). A is [m, k] and B [k, n] to the eye; which of their dimensions is contiguous in memory is the
// kernel's orientation. lda, ldb, ldc are the distances of two rows as they lie in memory, in elements.
struct Problem {
    int m, n, k;
    int lda, ldb, ldc; // unused where an operand is `Joined`
    int accumulate; // ≠ 0: adds to what C holds
};

// A: [m, k] with k contiguous, or [k, m] with m contiguous. B: [n, k] with k contiguous, or [k, n] with n contiguous.
enum { ALONG_K, ACROSS_K };

// A matrix as it lies in memory, its rows ld apart.
template <class T> struct Matrix {
    const T* first;
    int ld;
    __device__ __forceinline__ const T* at(int row, int column) const { return first + ((i64)row * ld + column); }
};
// One whose columns from `split` on lie in a second matrix; rows of either are contiguous. `split` is the whole width
// where there is no second.
template <class T> struct Joined {
    const T* first;
    const T* second;
    int split, rest; // columns of each
    __device__ __forceinline__ const T* at(int row, int column) const {
        return column < split ? first + ((i64)row * split + column) : second + ((i64)row * rest + (column - split));
    }
};

// Numbers of either dtype: masters are f32, what is frozen may be bf16.
struct Floats {
    const void* at; // or null
    int f32;

    __device__ __forceinline__ float operator[](i64 i) const {
        return f32 ? load((const float*)at + i) : load((const bf16*)at + i);
    }
};

// The rows that adapters act on: of each sample's `tokens` the `count` from `start`. Packed, they are numbered through.
struct Rows {
    int tokens, start, count;

    __device__ __forceinline__ int of_packed(int j) const { return j / count * tokens + start + j % count; }
    // −1 where adapters do not act.
    __device__ __forceinline__ int packed(int row) const {
        int t = row % tokens - start;
        return 0 <= t && t < count ? row / tokens * count + t : -1;
    }
    // Is one of the rows first .. end among them?
    __device__ __forceinline__ bool any(int first, int end) const {
        int t = first % tokens, past = t + end - first;
        return count > 0 && ((t < start + count && past > start) || past > tokens + start);
    }
};

// A tile's row as a matrix's: the same one, that of a packed row, the packed one.
struct Same {
    __device__ __forceinline__ int operator()(int row) const { return row; }
};
struct Unpacked {
    Rows rows;
    __device__ __forceinline__ int operator()(int row) const { return rows.of_packed(row); }
};
struct Packed {
    Rows rows;
    __device__ __forceinline__ int operator()(int row) const { return rows.packed(row); }
};

// The adapters' part of a product, appended to its k: s·f, s [packed rows, rank], f as the product's B, ldf apart.
template <class T> struct Extra {
    const T* s;
    const T* f;
    Rows rows;
    int rank; // of all adapters together, each rounded up to 16; 0 where there is none
    int ldf;

    // The k that a tile with rows first .. end adds.
    __device__ __forceinline__ int depth(int first, int end) const {
        return rank > 0 && rows.any(first, end) ? rank : 0;
    }
};

// Which tile a block takes: 8 rows of tiles are walked column by column, so that what runs at once shares its operands
// in the L2 cache.
__device__ __forceinline__ void tile_of(int block, int rows, int columns, int& row, int& column) {
    constexpr int GROUP = 8;
    int width = GROUP * columns, first = block / width * GROUP;
    int height = rows - first < GROUP ? rows - first : GROUP;
    row = first + block % width % height;
    column = block % width / height;
}

__device__ __forceinline__ int clamp(int v, int most) { return v < 0 ? 0 : v < most ? v : most; }
__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }

// Neighbours in one access.
__device__ __forceinline__ void load_all(const float* p, float (&v)[4]) { load_piece(p, v); }
__device__ __forceinline__ void load_all(const float* p, float (&v)[2]) {
    float2 pair = *reinterpret_cast<const float2*>(p);
    v[0] = pair.x, v[1] = pair.y;
}
__device__ __forceinline__ void load_all(const bf16* p, float (&v)[2]) {
    u32 pair = *reinterpret_cast<const u32*>(p);
    v[0] = low(pair), v[1] = high(pair);
}
__device__ __forceinline__ void store_all(float* p, const float (&v)[4]) { store_whole(p, v); }
__device__ __forceinline__ void store_all(float* p, const float (&v)[2]) {
    *reinterpret_cast<float2*>(p) = make_float2(v[0], v[1]);
}
__device__ __forceinline__ void store_all(bf16* p, const float (&v)[2]) {
    *reinterpret_cast<u32*>(p) = pair_of(v[0], v[1]);
}

// N neighbours of a row of C, of which `count` are there; one access for all where `whole`.
template <int N> struct Place {
    i64 at;
    int row, column, count;
    int width; // of C
    bool whole;

    template <class T> __device__ __forceinline__ void get(const T* from, float (&v)[N]) const {
        if (whole) {
            load_all(from + at, v);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = j < count ? load(from + at + j) : 0.0f;
        }
    }
    template <class T> __device__ __forceinline__ void put(T* to, const float (&v)[N]) const {
        if (whole) {
            store_all(to + at, v);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++)
                if (j < count) store(to + at + j, v[j]);
        }
    }
};

// What is done to z, biased and added, before it is stored as y; z is kept where backward wants it, else null.
// `beside`: an address that is aligned as all are that it reads or writes.
struct Plain {
    __device__ __forceinline__ const void* beside() const { return nullptr; }
    template <int N> __device__ __forceinline__ void apply(const Place<N>&, float (&)[N]) const {}
};
template <class T> struct Gelu {
    T* z;
    __device__ __forceinline__ const void* beside() const { return z; }
    template <int N> __device__ __forceinline__ void apply(const Place<N>& at, float (&v)[N]) const {
        if (z) at.put(z, v);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = gelu(v[j]);
    }
};
// Of backward: the gradient of what went through GELU becomes that of z.
template <class T> struct Slope {
    const T* z;
    __device__ __forceinline__ const void* beside() const { return z; }
    template <int N> __device__ __forceinline__ void apply(const Place<N>& at, float (&v)[N]) const {
        float before[N];
        at.get(z, before);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] *= gelu_slope(before[j]);
    }
};
// The residual, and the gate that z is multiplied with, where there is one.
template <class T, class Out> struct Residual {
    T* z;
    const Out* resid;
    Tables tables;
    int tokens, chunk;
    __device__ __forceinline__ const void* beside() const { return (const void*)((u64)z | (u64)resid); }
    template <int N> __device__ __forceinline__ void apply(const Place<N>& at, float (&v)[N]) const {
        if (z) at.put(z, v);
        float r[N];
        at.get(resid, r);
        const float* gate = nullptr;
        if (tables.image) gate = tables.chunk(at.row / tokens, at.row % tokens, at.width, chunk) + at.column;
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = r[j] + (gate && j < at.count ? gate[j] * v[j] : v[j]);
    }
};

// Queries or keys: each head by its weight and its 1/rms, its pairs turned by the angle of the token. A head is 16, 32,
// 64 or 128 columns: a tile of 128 holds it whole.
template <class T> struct NormRope {
    T* z;
    const float* weight; // [2·pairs]
    const float* cosine; // [tokens, pairs]
    const float* sine;
    float* norms; // the tile's 1/rms, in the block's shared memory
    int tokens, pairs;

    __device__ __forceinline__ const void* beside() const { return z; }
    // Where the tile's row has what its 16 columns from 16·part on give. 8 more than its rows stand between two parts, so
    // that two rows of four parts, which a warp of f32's product writes at once, lie in different banks.
    __device__ __forceinline__ float* place(int part, int row) const { return norms + part * 136 + row; }
    // Once each part of a row has its Σz²: 1/rms, where a head's first part has its own. The sums are added in order.
    __device__ __forceinline__ void measure() {
        __syncthreads();
        int parts = pairs / 8;
        for (int i = threadIdx.x; i < 128 * (8 / parts); i += blockDim.x) {
            int first = i / 128 * parts, row = i % 128;
            float sum = *place(first, row);
            for (int k = 1; k < parts; k++) sum += *place(first + k, row);
            *place(first, row) = rrms(sum, pairs);
        }
        __syncthreads();
    }
    template <int N> __device__ __forceinline__ void apply(const Place<N>& at, float (&v)[N]) const {
        if (z) at.put(z, v);
        int c = at.column & (2 * pairs - 1);
        i64 angle = (i64)(at.row % tokens) * pairs + c / 2;
        float r = *place(((at.column & 127) - c) / 16, at.row & 127);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            i64 pair = angle + j / 2;
            norm_rotate(v[j], v[j + 1], r, weight[c + j], weight[c + j + 1], cosine[pair], sine[pair]);
        }
    }
};

// The sum over four lanes that are neighbours, in each of them.
__device__ __forceinline__ float sum_of_four(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// What an epilogue must know of the whole tile, before its first value: nothing, but for norms.
template <class E, class Acc>
__device__ __forceinline__ void survey(E&, const Acc&, const Floats&, const Problem&, int, void*) {}

// N neighbours of a row of A·B: biased, added to what is there, through the epilogue, stored.
template <int N, class Out, class E>
__device__ __forceinline__ void finish(const Problem& p, const Floats& bias, Out* c, const E& e, int row, int column,
                                       bool whole, float (&v)[N]) {
    int count = p.n - column;
    if (row >= p.m || count <= 0) return;
    Place<N> at{(i64)row * p.ldc + column, row, column, count, p.n, whole && count >= N};
    if (bias.at) {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] += j < count ? bias[column + j] : 0.0f;
    }
    if (p.accumulate) {
        float old[N];
        at.get(c, old);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] += old[j];
    }
    e.apply(at, v);
    at.put(c, v);
}

// Two columns of a packed row of S, by the factors of its sample, which are as far apart as rows of S: 0 is 0 whatever
// it would scale.
template <class T>
__device__ __forceinline__ void scaled(T* c, const float* factor, const Rows& rows, const Problem& p, int row,
                                       int column, float (&v)[2]) {
    const float* by = factor + (i64)(row / rows.count) * p.ldc + column;
#pragma unroll
    for (int j = 0; j < 2; j++) v[j] = by[j] == 0.0f ? 0.0f : by[j] * v[j];
    store_all(c + (i64)row * p.ldc + column, v);
}

// Two columns of a row of a part of an adapter's gradient, stored [m, n] or, across, [n, m].
__device__ __forceinline__ void keep_partial(float* partial, int across, const Problem& p, int row, int column,
                                             const float (&v)[2]) {
    if (across) {
        partial[(i64)column * p.m + row] = v[0];
        partial[(i64)(column + 1) * p.m + row] = v[1];
    } else {
        store_all(partial + (i64)row * p.n + column, v);
    }
}
