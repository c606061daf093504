// QK-norm and RoPE, for kernels/qk_norm_rope.cu and the epilogue of kernels/linear.cu.
#pragma once

// 1/√(mean x² + ε) of a head of `pairs` pairs, from Σx².
__device__ __forceinline__ float rrms(float squares, int pairs) {
    return rsqrtf(squares / (float)(2 * pairs) + 1e-6f);
}

// A pair of a head by 1/rms `r` and its weights, turned by the angle with cosine c and sine s.
__device__ __forceinline__ void norm_rotate(float& even, float& odd, float r, float w_even, float w_odd, float c,
                                            float s) {
    float a = even * r * w_even, b = odd * r * w_odd;
    even = a * c - b * s;
    odd = b * c + a * s;
}
