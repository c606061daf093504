// The worst perturbation of a Sobolev ball: the CUDA side of src/losses/riesz.rs.
#include "common/reduce.cuh"

// Values of a piece of a sample, which a block sums.
constexpr int PIECE = 4096;

// riesz_dot: partial[n, p] = Σ g·δ over the p-th 4096 values of sample n, in f64
// Shapes: g, delta [samples, each]; partial [samples, ⌈each/4096⌉] f64.
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: x ⌈each/4096⌉, y samples; blocks of 256.
// Cost: 8 bytes read per value, one f64 product; bound by bandwidth.
// Idea: products are exact in f64; pieces of a fixed size and one order.
extern "C" __global__ void __launch_bounds__(256)
    riesz_dot_f32(const float* __restrict__ g, const float* __restrict__ delta, double* __restrict__ partial,
                  i64 each) {
    __shared__ double scratch[8];
    i64 begin = (i64)blockIdx.x * PIECE, end = begin + PIECE < each ? begin + PIECE : each;
    i64 base = (i64)blockIdx.y * each;
    double sum = 0.0;
    for (i64 i = base + begin + threadIdx.x; i < base + end; i += 256) sum += (double)g[i] * (double)delta[i];
    sum = block_sum<8>(sum, scratch);
    if (threadIdx.x == 0) partial[(i64)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// riesz_scale: δ ← −ρ/√(Σ partial/each)·δ of every sample; 0 where the sum is
// Shapes: delta [samples, each]; partial [samples, pieces] f64; rho [samples].
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 8 bytes moved per value; bound by bandwidth.
// Traffic: every block of a sample reads its few partial sums again, from the L2 cache.
// Idea: a gradient that is not finite stays visible: NaN is not 0.
extern "C" __global__ void __launch_bounds__(256)
    riesz_scale_f32(float* __restrict__ delta, const double* __restrict__ partial, const float* __restrict__ rho,
                    i64 each, int pieces) {
    double sum = 0.0;
    for (int p = 0; p < pieces; p++) sum += partial[(i64)blockIdx.y * pieces + p];
    double norm = sqrt(sum / (double)each);
    float factor = norm == 0.0 ? 0.0f : (float)(-(double)rho[blockIdx.y] / norm);
    i64 base = (i64)blockIdx.y * each;
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < each; i += (i64)gridDim.x * 256) delta[base + i] *= factor;
}
