// Group normalisation: the CUDA side of src/ops/group_norm.rs.
#include "common/elementwise.cuh"
#include "common/reduce.cuh"
#include "common/silu.cuh"

// Values of a piece of a group, which a block sums.
constexpr int PIECE = 4096;

// group_norm_fwd_sums: partial[g, p] = (Σ x, Σ x²) over the p-th 4096 values of group g
// Shapes: x [groups, each]; partial [groups, ⌈each/4096⌉, 2] f64.
// Layout: contiguous, values aligned to themselves; they do not overlap.
// Grid: x ⌈each/4096⌉, y groups; blocks of 256.
// Cost: 4 bytes read per value, 3 FLOPs; bound by bandwidth.
// Idea: f64 leaves σ² = E x² − μ² all of x's digits, so one reading does; pieces of a fixed size: a sample's bits do
//   not depend on its neighbours.
extern "C" __global__ void __launch_bounds__(256)
    group_norm_fwd_sums_f32(const float* __restrict__ x, double* __restrict__ partial, i64 each) {
    __shared__ double scratch[8];
    i64 begin = (i64)blockIdx.x * PIECE, end = begin + PIECE < each ? begin + PIECE : each;
    i64 base = (i64)blockIdx.y * each;
    double sum = 0.0, squares = 0.0;
    for (i64 i = begin + threadIdx.x; i < end; i += 256) {
        double v = (double)x[base + i];
        sum += v, squares += v * v;
    }
    sum = block_sum<8>(sum, scratch);
    squares = block_sum<8>(squares, scratch);
    if (threadIdx.x == 0) {
        double* to = partial + ((i64)blockIdx.y * gridDim.x + blockIdx.x) * 2;
        to[0] = sum, to[1] = squares;
    }
}

// group_norm_fwd_stats: stats[g] = (μ, 1/√(σ² + ε))
// Shapes: partial [groups, pieces, 2] f64; stats [groups, 2] f32.
// Layout: contiguous, values aligned to themselves; they do not overlap.
// Grid: groups blocks of 32.
// Cost: 16·pieces bytes read per group; bound by latency.
// Traffic: a result of 8 bytes is a sector of 32, and there is little else to move.
// Idea: in f64 and in one order.
extern "C" __global__ void __launch_bounds__(32)
    group_norm_fwd_stats_f32(const double* partial, float* stats, int pieces, double eps, double each) {
    double sum = 0.0, squares = 0.0;
    for (int i = threadIdx.x; i < pieces; i += 32) {
        const double* from = partial + ((i64)blockIdx.x * pieces + i) * 2;
        sum += from[0], squares += from[1];
    }
    double mean = warp_sum(sum) / each, variance = warp_sum(squares) / each - mean * mean;
    if (threadIdx.x == 0) {
        stats[blockIdx.x * 2] = (float)mean;
        stats[blockIdx.x * 2 + 1] = (float)(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + eps));
    }
}

// group_norm_fwd: y = f((x − μ)·(1/√(σ² + ε))·w[c] + bias[c]), f SiLU where silu ≠ 0
// Shapes: x, y [batch, channels, plane]; stats [batch, channels/own, 2]; w, bias [channels].
// Layout: contiguous; 16 bytes at a time where a plane's values are aligned to them; y may be x.
// Grid: x any number of blocks of 256 over a plane, y the channels, z the batch.
// Cost: 8 bytes moved per value, 4 FLOPs, 9 with SiLU; bound by bandwidth.
// Traffic: planes of odd size begin amid a sector, and a block reads 16 bytes of its channel's numbers.
// Idea: 16 bytes per load; what a value is shifted and scaled by is one for its whole block.
extern "C" __global__ void __launch_bounds__(256)
    group_norm_fwd_f32(const float* x, const float* stats, const float* w, const float* bias, float* y, int own,
                       int with_silu, i64 plane) {
    int c = blockIdx.y;
    i64 row = (i64)blockIdx.z * gridDim.y + c;
    const float* of_group = stats + row / own * 2;
    float mean = of_group[0], factor = of_group[1] * w[c], shift = bias[c];
    x += row * plane, y += row * plane;
    if (with_silu)
        map(x, y, plane, [=](float v) { return silu((v - mean) * factor + shift); });
    else
        map(x, y, plane, [=](float v) { return (v - mean) * factor + shift; });
}
