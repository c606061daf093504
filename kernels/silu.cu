// SiLU: the CUDA side of src/ops/silu.rs.
#include "common/elementwise.cuh"
#include "common/silu.cuh"

// s·(1 + x·(1 − s)). 1 − s is e·s with e = e^{−x}, held where that would overflow; a subtraction would lose it where s
// is near 1.
__device__ __forceinline__ float silu_slope(float x) {
    float e = fminf(expf(-x), 1e30f), s = 1.0f / (1.0f + e);
    return s * (1.0f + x * (e * s));
}

// silu_fwd: y = x·sigmoid(x)
// Shapes: x [n], y [n], any n.
// Layout: contiguous; 16 bytes at a time where all are aligned to them; y may be x.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 2n values moved, 5n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load.
extern "C" __global__ void __launch_bounds__(256) silu_fwd_f32(const float* x, float* y, i64 n) {
    map(x, y, n, silu);
}
extern "C" __global__ void __launch_bounds__(256) silu_fwd_bf16(const bf16* x, bf16* y, i64 n) {
    map(x, y, n, silu);
}

// silu_bwd: dx = dy ⊙ SiLU′(x), added to dx where accumulate ≠ 0
// Shapes: x [n], dy [n], dx [n], any n.
// Layout: contiguous; 16 bytes at a time where all are aligned to them; dx may be dy (then accumulate = 0), not x.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 3n values moved (4n accumulating), 8n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load; value and slope from one exponential, nothing saved but x.
extern "C" __global__ void __launch_bounds__(256)
    silu_bwd_f32(const float* x, const float* dy, float* dx, i64 n, int accumulate) {
    map2(x, dy, dx, n, accumulate, [](float x, float dy) { return dy * silu_slope(x); });
}
extern "C" __global__ void __launch_bounds__(256)
    silu_bwd_bf16(const bf16* x, const bf16* dy, bf16* dx, i64 n, int accumulate) {
    map2(x, dy, dx, n, accumulate, [](float x, float dy) { return dy * silu_slope(x); });
}
