// tanh-GELU and its slope, for kernels/gelu.cu and the epilogue of kernels/linear.cu.
#pragma once

// (1 + tanh u)/2 = sigmoid(2u), u = √(2/π)·(x + 0.044715·x³). Beyond |x| = 100 it is 0 or 1 whatever x² is; held there,
// so that no product overflows.
__device__ __forceinline__ float gelu_gate(float x, float square) {
    return 1.0f / (1.0f + expf(-1.5957691216f * x * (1.0f + 0.044715f * square)));
}

__device__ __forceinline__ float gelu(float x) { return x * gelu_gate(x, fminf(x * x, 1e4f)); }

__device__ __forceinline__ float gelu_slope(float x) {
    float square = fminf(x * x, 1e4f), s = gelu_gate(x, square);
    // A saturated gate has no slope; x may be large there.
    float bend = s * (1.0f - s);
    return s + (bend > 0.0f ? x * bend * 1.5957691216f * (1.0f + 0.134145f * square) : 0.0f);
}
