// tanh-GELU and its slope, for kernels/gelu.cu and the epilogue of kernels/linear.cu.
#pragma once

// e^{−2u}, u = √(2/π)·(x + 0.044715·x³), held where no product that follows overflows.
__device__ __forceinline__ float gelu_exp(float x, float square) {
    return fminf(expf(-1.5957691216f * x * (1.0f + 0.044715f * square)), 1e30f);
}

// (1 + tanh u)/2 = 1/(1 + e^{−2u}). Beyond |x| = 100 that is 0 or 1 whatever x² is.
__device__ __forceinline__ float gelu(float x) { return x * (1.0f / (1.0f + gelu_exp(x, fminf(x * x, 1e4f)))); }

// With s = (1 + tanh u)/2: 1 − s is e·s, which a subtraction would lose where s is near 1.
__device__ __forceinline__ float gelu_slope(float x) {
    float square = fminf(x * x, 1e4f), e = gelu_exp(x, square), s = 1.0f / (1.0f + e);
    float bend = e * s * s;
    // A saturated gate has no slope; x may be large there.
    return s + (bend > 0.0f ? x * bend * 1.5957691216f * (1.0f + 0.134145f * square) : 0.0f);
}
