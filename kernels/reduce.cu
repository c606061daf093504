// Means in f64 and in a fixed order: the CUDA side of src/ops/reduce.rs.
#include "common/reduce.cuh"

// Values of a piece of a sample, which a block sums.
constexpr int PIECE = 4096;

// mean_square_fwd: residual = v − target, partial[n, p] = Σ residual² over the p-th 4096 values of sample n
// Shapes: v [≥ samples, each], target, residual [samples, each]; partial [samples, ⌈each/4096⌉] f64.
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: x ⌈each/4096⌉, y samples; blocks of 256.
// Cost: 12 bytes moved per value, 3 FLOPs; bound by bandwidth.
// Idea: pieces of a fixed size: a sample's bits do not depend on its neighbours.
extern "C" __global__ void __launch_bounds__(256)
    mean_square_fwd_f32(const float* __restrict__ v, const float* __restrict__ target, float* __restrict__ residual,
                        double* __restrict__ partial, i64 each) {
    __shared__ double scratch[8];
    i64 begin = (i64)blockIdx.x * PIECE, end = begin + PIECE < each ? begin + PIECE : each;
    i64 base = (i64)blockIdx.y * each;
    double sum = 0.0;
    for (i64 i = begin + threadIdx.x; i < end; i += 256) {
        float r = v[base + i] - target[base + i];
        residual[base + i] = r;
        sum += (double)r * (double)r;
    }
    sum = block_sum<8>(sum, scratch);
    if (threadIdx.x == 0) partial[(i64)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// mean_square_fwd_sum: e[n] = Σ partial[n, ·] / each
// Shapes: partial [samples, pieces] f64; e [samples] f32.
// Layout: contiguous, values aligned to themselves; they do not overlap.
// Grid: samples blocks of 32.
// Cost: 8·pieces bytes read per sample; bound by latency.
// Traffic: a result of 4 bytes is a sector of 32, and there is little else to move.
// Idea: in f64 and in one order.
extern "C" __global__ void __launch_bounds__(32)
    mean_square_fwd_sum_f32(const double* partial, float* e, int pieces, double each) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < pieces; i += 32) sum += partial[(i64)blockIdx.x * pieces + i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) e[blockIdx.x] = (float)(sum / each);
}

// mean_square_bwd: dv = factor·de[n]·residual, added where accumulate ≠ 0; factor = 2/each
// Shapes: residual, dv [samples, each]; de [samples].
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 8 bytes moved per value (12 accumulating); bound by bandwidth.
// Idea: the residual was kept.
extern "C" __global__ void __launch_bounds__(256)
    mean_square_bwd_f32(const float* residual, const float* de, float* dv, i64 each, float factor, int accumulate) {
    float by = factor * de[blockIdx.y];
    i64 base = (i64)blockIdx.y * each;
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < each; i += (i64)gridDim.x * 256) {
        float v = by * residual[base + i];
        dv[base + i] = accumulate ? dv[base + i] + v : v;
    }
}

// mean_fwd: y = Σ x / n
// Shapes: x [n], y [1], any n ≥ 1.
// Layout: contiguous f32, values aligned to themselves.
// Grid: 1 block of 256.
// Cost: 4n bytes read; n is a batch: bound by latency.
// Traffic: a result of 4 bytes is a sector of 32, and there is little else to move.
// Idea: in f64 and in one order.
extern "C" __global__ void __launch_bounds__(256) mean_fwd_f32(const float* x, float* y, int n) {
    __shared__ double scratch[8];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += 256) sum += (double)x[i];
    sum = block_sum<8>(sum, scratch);
    if (threadIdx.x == 0) *y = (float)(sum / (double)n);
}

// mean_bwd: dx = dy/n, added where accumulate ≠ 0
// Shapes: dy [1], dx [n].
// Layout: contiguous f32, values aligned to themselves; they do not overlap.
// Grid: ⌈n/256⌉ blocks of 256.
// Cost: 4·n bytes written; bound by latency.
// Traffic: 4 bytes that are read are a sector of 32, and there is little else to move.
// Idea: none needed.
extern "C" __global__ void __launch_bounds__(256)
    mean_bwd_f32(const float* dy, float* dx, int values, float n, int accumulate) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < values) dx[i] = accumulate ? dx[i] + *dy / n : *dy / n;
}
