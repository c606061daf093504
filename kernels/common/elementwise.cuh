// A function of one or two arrays, element by element.
#pragma once
#include "common/types.cuh"

// y[i] = f(x[i]); 16 bytes per thread and turn where the arrays are aligned to them (rows of a tensor of odd width need
// not be), the last few elements one by one: in a loop that is not unrolled, or it takes the registers of the other.
// Where `accumulate`, what y holds is added.
template <class T, class F>
__device__ __forceinline__ void map(const T* x, T* y, i64 n, F f, bool accumulate = false) {
    constexpr int N = Piece<T>::N;
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = aligned(x, y) ? n / N : 0;
    for (i64 i = me; i < pieces; i += step) {
        float v[N], w[N];
        load_piece(x + i * N, v);
        if (accumulate) load_piece(y + i * N, w);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = accumulate ? f(v[k]) + w[k] : f(v[k]);
        store_piece(y + i * N, v);
    }
#pragma unroll 1
    for (i64 i = pieces * N + me; i < n; i += step) {
        float v = f(load(x + i));
        store(y + i, accumulate ? v + load(y + i) : v);
    }
}

// y[i] = f(a[i], b[i]), plus what y holds where `accumulate`.
template <class T, class F>
__device__ __forceinline__ void map2(const T* a, const T* b, T* y, i64 n, bool accumulate, F f) {
    constexpr int N = Piece<T>::N;
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = aligned(a, b, y) ? n / N : 0;
    for (i64 i = me; i < pieces; i += step) {
        float u[N], v[N], w[N];
        load_piece(a + i * N, u);
        load_piece(b + i * N, v);
        if (accumulate) load_piece(y + i * N, w);
#pragma unroll
        for (int k = 0; k < N; k++) u[k] = accumulate ? f(u[k], v[k]) + w[k] : f(u[k], v[k]);
        store_piece(y + i * N, u);
    }
#pragma unroll 1
    for (i64 i = pieces * N + me; i < n; i += step) {
        float v = f(load(a + i), load(b + i));
        store(y + i, accumulate ? v + load(y + i) : v);
    }
}
