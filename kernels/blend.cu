// Two fields mixed by the sample's noise level: the CUDA side of src/ops/blend.rs.
#include "common/elementwise.cuh"
#include "common/philox.cuh"

// blend_fwd: out = (a0 + a1·σ)·x + (c0 + c1·σ)·y, σ that of the sample
// Shapes: x, y, out [samples, each]; sigma [samples].
// Layout: contiguous f32; 16 bytes at a time where a sample begins on them; nothing overlaps.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 12 bytes moved, 3 FLOPs per element; bound by bandwidth.
// Idea: one kernel for the noised sample, its target, the estimate and the sampler's step. The bits are the CPU's.
extern "C" __global__ void __launch_bounds__(256)
    blend_fwd_f32(const float* x, const float* y, const float* sigma, float* out, float a0, float a1, float c0,
                  float c1, i64 each) {
    float level = sigma[blockIdx.y];
    float p = add(a0, mul(a1, level)), q = add(c0, mul(c1, level));
    i64 base = (i64)blockIdx.y * each;
    map2(x + base, y + base, out + base, each, false, [p, q](float x, float y) { return add(mul(p, x), mul(q, y)); });
}

// blend_bwd: dx = (a0 + a1·σ)·dy, added where accumulate ≠ 0
// Shapes: dy, dx [samples, each]; sigma [≥ samples].
// Layout: contiguous f32; 16 bytes at a time where a sample begins on them; they do not overlap.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 8 bytes moved per element (12 accumulating); bound by bandwidth.
// Idea: the factor is made again from σ.
extern "C" __global__ void __launch_bounds__(256)
    blend_bwd_f32(const float* dy, const float* sigma, float* dx, float a0, float a1, i64 each, int accumulate) {
    float p = add(a0, mul(a1, sigma[blockIdx.y]));
    i64 base = (i64)blockIdx.y * each;
    map(dy + base, dx + base, each, [p](float dy) { return mul(p, dy); }, accumulate != 0);
}
