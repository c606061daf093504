// A function of one or two arrays, element by element.
#pragma once
#include "common/types.cuh"

// y[i] = f(x[i]); 16 bytes per thread and turn, the last few elements one by one.
template <class T, class F> __device__ __forceinline__ void map(const T* x, T* y, i64 n, F f) {
    constexpr int N = Piece<T>::N;
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = n / N;
    for (i64 i = me; i < pieces; i += step) {
        float v[N];
        load_piece(x + i * N, v);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = f(v[k]);
        store_piece(y + i * N, v);
    }
    for (i64 i = pieces * N + me; i < n; i += step) store(y + i, f(load(x + i)));
}

// y[i] = f(a[i], b[i]), plus what y holds where `accumulate`.
template <class T, class F>
__device__ __forceinline__ void map2(const T* a, const T* b, T* y, i64 n, bool accumulate, F f) {
    constexpr int N = Piece<T>::N;
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = n / N;
    for (i64 i = me; i < pieces; i += step) {
        float u[N], v[N], w[N];
        load_piece(a + i * N, u);
        load_piece(b + i * N, v);
        if (accumulate) load_piece(y + i * N, w);
#pragma unroll
        for (int k = 0; k < N; k++) u[k] = f(u[k], v[k]) + (accumulate ? w[k] : 0.0f);
        store_piece(y + i * N, u);
    }
    for (i64 i = pieces * N + me; i < n; i += step) {
        float v = f(load(a + i), load(b + i));
        store(y + i, accumulate ? v + load(y + i) : v);
    }
}
