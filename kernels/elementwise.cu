// Copies between dtypes, fills and sums: what the engine itself does to arrays.
#include "common/elementwise.cuh"

// cast_f32_bf16, cast_bf16_f32: y = x in the other dtype, or x + y where accumulate ≠ 0; to bf16 rounded to nearest
//   even
// Shapes: x [n], y [n], any n.
// Layout: contiguous; four values at a time where both are aligned to them; they do not overlap.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 6n bytes moved (8n or 10n accumulating); bound by bandwidth.
// Idea: 4 values per thread and turn, so that a warp's requests are contiguous on either side.
template <class T, class U>
__device__ __forceinline__ void cast(const T* __restrict__ x, U* __restrict__ y, i64 n, int accumulate) {
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = aligned<4 * sizeof(T)>(x) && aligned<4 * sizeof(U)>(y) ? n / 4 : 0;
    for (i64 i = me; i < pieces; i += step) {
        float v[4], w[4];
        load_four(x + i * 4, v);
        if (accumulate) load_four(y + i * 4, w);
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = accumulate ? v[k] + w[k] : v[k];
        store_four(y + i * 4, v);
    }
#pragma unroll 1
    for (i64 i = pieces * 4 + me; i < n; i += step) {
        float v = load(x + i);
        store(y + i, accumulate ? v + load(y + i) : v);
    }
}
extern "C" __global__ void __launch_bounds__(256) cast_f32_bf16(const float* x, bf16* y, i64 n, int accumulate) {
    cast(x, y, n, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) cast_bf16_f32(const bf16* x, float* y, i64 n, int accumulate) {
    cast(x, y, n, accumulate);
}

// fill: y = value
// Shapes: y [n], any n.
// Layout: contiguous; 16 bytes at a time where y is aligned to them.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: n values written; bound by bandwidth.
// Idea: 16 bytes per store.
template <class T> __device__ __forceinline__ void fill(T* y, float value, i64 n) {
    constexpr int N = Piece<T>::N;
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = aligned(y) ? n / N : 0;
    float v[N];
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = value;
    for (i64 i = me; i < pieces; i += step) store_piece(y + i * N, v);
#pragma unroll 1
    for (i64 i = pieces * N + me; i < n; i += step) store(y + i, value);
}
extern "C" __global__ void __launch_bounds__(256) fill_f32(float* y, float value, i64 n) { fill(y, value, n); }
extern "C" __global__ void __launch_bounds__(256) fill_bf16(bf16* y, float value, i64 n) { fill(y, value, n); }

// add: y ← x + y, rounded once
// Shapes: x [n], y [n], any n.
// Layout: contiguous; 16 bytes at a time where both are aligned to them; x may be y.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 3n values moved, n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load.
extern "C" __global__ void __launch_bounds__(256) add_f32(const float* x, float* y, i64 n) {
    map(x, y, n, [](float x) { return x; }, true);
}
extern "C" __global__ void __launch_bounds__(256) add_bf16(const bf16* x, bf16* y, i64 n) {
    map(x, y, n, [](float x) { return x; }, true);
}

// axpy, scale: y ← y + a·x; y ← a·x
//   a = factor · *at: at is a number in device memory that changes from launch to launch, or null for 1.
// Shapes: x [n], y [n], any n; at one f32 or null.
// Layout: contiguous; 16 bytes at a time where both are aligned to them; x may be y, at neither.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 3n (2n) values moved, 2n (n) FLOPs; bound by bandwidth.
// Idea: 16 bytes per load; a launch is the same every step.
extern "C" __global__ void __launch_bounds__(256)
    axpy_f32(float factor, const float* at, const float* x, float* y, i64 n) {
    float a = at ? factor * *at : factor;
    map(x, y, n, [a](float x) { return a * x; }, true);
}
extern "C" __global__ void __launch_bounds__(256)
    axpy_bf16(float factor, const float* at, const bf16* x, bf16* y, i64 n) {
    float a = at ? factor * *at : factor;
    map(x, y, n, [a](float x) { return a * x; }, true);
}
extern "C" __global__ void __launch_bounds__(256)
    scale_f32(float factor, const float* at, const float* x, float* y, i64 n) {
    float a = at ? factor * *at : factor;
    map(x, y, n, [a](float x) { return a * x; });
}
extern "C" __global__ void __launch_bounds__(256)
    scale_bf16(float factor, const float* at, const bf16* x, bf16* y, i64 n) {
    float a = at ? factor * *at : factor;
    map(x, y, n, [a](float x) { return a * x; });
}
