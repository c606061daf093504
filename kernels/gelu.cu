// GELU, tanh form: the CUDA side of src/ops/gelu.rs.
#include "common/elementwise.cuh"

// (1 + tanh u)/2 = sigmoid(2u), u = √(2/π)·(x + 0.044715·x³). Beyond |x| = 100 it is 0 or 1 whatever x² is; held there,
// so that no product overflows.
__device__ __forceinline__ float gate(float x, float square) {
    return 1.0f / (1.0f + expf(-1.5957691216f * x * (1.0f + 0.044715f * square)));
}

__device__ __forceinline__ float gelu(float x) { return x * gate(x, fminf(x * x, 1e4f)); }

__device__ __forceinline__ float gelu_slope(float x) {
    float square = fminf(x * x, 1e4f), s = gate(x, square);
    // A saturated gate has no slope; x may be large there.
    float bend = s * (1.0f - s);
    return s + (bend > 0.0f ? x * bend * 1.5957691216f * (1.0f + 0.134145f * square) : 0.0f);
}

// gelu_fwd: y = GELU(x), y = 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
// Shapes: x [n], y [n], any n.
// Layout: contiguous, aligned to 16 bytes; y may be x.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 2n values moved, 14n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load; the tanh as one exponential.
extern "C" __global__ void __launch_bounds__(256) gelu_fwd_f32(const float* x, float* y, i64 n) {
    map(x, y, n, gelu);
}
extern "C" __global__ void __launch_bounds__(256) gelu_fwd_bf16(const bf16* x, bf16* y, i64 n) {
    map(x, y, n, gelu);
}

// gelu_bwd: dx = dy ⊙ GELU′(x), added to dx where accumulate ≠ 0
// Shapes: x [n], dy [n], dx [n], any n.
// Layout: contiguous, aligned to 16 bytes; dx may be dy (then accumulate = 0), not x.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 3n values moved (4n accumulating), 20n FLOPs; bound by bandwidth.
// Idea: 16 bytes per load; slope and gate from one exponential, nothing saved but x.
extern "C" __global__ void __launch_bounds__(256)
    gelu_bwd_f32(const float* x, const float* dy, float* dx, i64 n, int accumulate) {
    map2(x, dy, dx, n, accumulate, [](float x, float dy) { return dy * gelu_slope(x); });
}
extern "C" __global__ void __launch_bounds__(256)
    gelu_bwd_bf16(const bf16* x, const bf16* dy, bf16* dx, i64 n, int accumulate) {
    map2(x, dy, dx, n, accumulate, [](float x, float dy) { return dy * gelu_slope(x); });
}
