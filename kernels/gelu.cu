// GELU, tanh form: the CUDA side of src/ops/gelu.rs.
#include "common/elementwise.cuh"
#include "common/gelu.cuh"

// gelu_fwd: y = GELU(x), y = 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
// Shapes: x [n], y [n], any n.
// Layout: contiguous; 16 bytes at a time where all are aligned to them; y may be x.
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
// Layout: contiguous; 16 bytes at a time where all are aligned to them; dx may be dy (then accumulate = 0), not x.
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
