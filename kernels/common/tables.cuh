// Modulation tables, for kernels/ln_modulate.cu and the gates of kernels/linear.cu.
#pragma once
#include "common/types.cuh"

// Where a token's shift, scale or gate stands: image tokens (t < split) of sample b read row image_row[b] of the image
// table, the others row cond_row[b] of the condition table. Rows are `width` values; a chunk is d of them. f32,
// whatever the activations: 1 + scale is exact to more than a bf16 holds.
struct Tables {
    const float* image;
    const float* cond;
    const int* image_row;
    const int* cond_row;
    int image_width;
    int cond_width;
    int split;

    __device__ __forceinline__ const float* chunk(int b, int t, int d, int index) const {
        return t < split ? image + (i64)image_row[b] * image_width + (i64)index * d
                         : cond + (i64)cond_row[b] * cond_width + (i64)index * d;
    }
};
