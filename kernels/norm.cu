// LayerNorm and RMSNorm with weights: the CUDA side of src/ops/norm.rs.
#include "common/reduce.cuh"

// norm_fwd: y = (x − mean)·w/√(variance + ε) + b, without mean and b where b is null: √(mean x² + ε)
// Shapes: x [rows, d], w [d], b [d] or null, y [rows, d] in f32 or, mixed, bf16; any rows, d > 0.
// Layout: contiguous, aligned to a value; y may be x where both are f32, else nothing overlaps.
// Grid: ⌈rows/8⌉ blocks of 256: a warp takes a row.
// Cost: a value read and one written for each of x; bound by bandwidth.
// Traffic: a row is read again for its variance and for y, from the L1 cache; odd rows begin amid a sector.
// Idea: a row is one warp's, so nothing waits for a block; the variance is of what the mean leaves.
template <class T>
__device__ __forceinline__ void norm(const float* __restrict__ x, const float* __restrict__ w,
                                     const float* __restrict__ b, T* y, int rows, int d, float eps) {
    int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    x += (i64)row * d, y += (i64)row * d;
    float sum = 0.0f, squares = 0.0f;
    if (b)
        for (int i = lane; i < d; i += 32) sum += x[i];
    float mean = warp_sum(sum) / d;
    for (int i = lane; i < d; i += 32) squares += (x[i] - mean) * (x[i] - mean);
    float by = 1.0f / sqrtf(warp_sum(squares) / d + eps);
    for (int i = lane; i < d; i += 32) store(y + i, (x[i] - mean) * by * w[i] + (b ? b[i] : 0.0f));
}

extern "C" __global__ void __launch_bounds__(256)
    norm_fwd_f32(const float* x, const float* w, const float* b, float* y, int rows, int d, float eps) {
    norm(x, w, b, y, rows, d, eps);
}
extern "C" __global__ void __launch_bounds__(256)
    norm_fwd_mixed(const float* x, const float* w, const float* b, bf16* y, int rows, int d, float eps) {
    norm(x, w, b, y, rows, d, eps);
}
