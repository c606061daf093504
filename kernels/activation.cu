// The text encoders' activations: the CUDA side of src/ops/activation.rs.
#include "common/elementwise.cuh"
#include "common/gelu.cuh"

__device__ __forceinline__ float quick_gelu(float x) { return x * (1.0f / (1.0f + expf(-1.702f * x))); }

// activation_fwd_quick: y = x·sigmoid(1.702·x)
// Shapes: x [n], y [n], any n.
// Layout: contiguous; 16 bytes at a time where all are aligned to them; y may be x.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 2n values moved, 6n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load.
extern "C" __global__ void __launch_bounds__(256) activation_fwd_quick_f32(const float* x, float* y, i64 n) {
    map(x, y, n, quick_gelu);
}
extern "C" __global__ void __launch_bounds__(256) activation_fwd_quick_bf16(const bf16* x, bf16* y, i64 n) {
    map(x, y, n, quick_gelu);
}

// activation_fwd_gated: y = GELU(x)·g
// Shapes: x [n], g [n], y [n], any n.
// Layout: contiguous; 16 bytes at a time where all are aligned to them; y may be x or g.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 3n values moved, 15n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load.
extern "C" __global__ void __launch_bounds__(256)
    activation_fwd_gated_f32(const float* x, const float* g, float* y, i64 n) {
    map2(x, g, y, n, false, [](float x, float g) { return gelu(x) * g; });
}
extern "C" __global__ void __launch_bounds__(256)
    activation_fwd_gated_bf16(const bf16* x, const bf16* g, bf16* y, i64 n) {
    map2(x, g, y, n, false, [](float x, float g) { return gelu(x) * g; });
}
