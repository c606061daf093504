// What holds a preference policy back: the CUDA side of src/losses/anchor.rs.
#include "common/reduce.cuh"

// Values of a piece of a sample, which a block takes.
constexpr int PIECE = 4096;

// anchor_fwd: gradient = a·(v − v_ref) + [sample < winners]·m·(v − target), and per piece the sums of the two squares
// Shapes: v, v_ref, target, gradient [samples, each]; partial [samples, ⌈each/4096⌉, 2] f64.
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: x ⌈each/4096⌉, y samples; blocks of 256.
// Cost: 16 bytes moved per value, 8 FLOPs; bound by bandwidth.
// Traffic: samples of a dozen values begin amid a sector; those of latents are whole sectors.
// Idea: pieces of a fixed size, so that a sample's bits do not depend on its neighbours.
extern "C" __global__ void __launch_bounds__(256)
    anchor_fwd_f32(const float* __restrict__ v, const float* __restrict__ v_ref, const float* __restrict__ target,
                   float* __restrict__ gradient, double* __restrict__ partial, i64 each, int winners, float a,
                   float m) {
    __shared__ double scratch[8];
    i64 begin = (i64)blockIdx.x * PIECE, end = begin + PIECE < each ? begin + PIECE : each;
    i64 base = (i64)blockIdx.y * each;
    if ((int)blockIdx.y >= winners) m = 0.0f;
    double held = 0.0, missed = 0.0;
    for (i64 i = base + begin + threadIdx.x; i < base + end; i += 256) {
        float r = v[i] - v_ref[i], t = v[i] - target[i];
        gradient[i] = a * r + m * t;
        held += (double)r * (double)r;
        missed += (double)t * (double)t;
    }
    held = block_sum<8>(held, scratch);
    missed = block_sum<8>(missed, scratch);
    if (threadIdx.x == 0) {
        i64 at = ((i64)blockIdx.y * gridDim.x + blockIdx.x) * 2;
        partial[at] = held;
        partial[at + 1] = missed;
    }
}

// anchor_fwd_sum: loss = given + w_a·(Σ held over all samples) + w_m·(Σ missed over the winners), each over its values
// Shapes: partial [samples, pieces, 2] f64; given, loss [1].
// Layout: contiguous, values aligned to themselves; nothing overlaps.
// Grid: 1 block of 32.
// Cost: 16 bytes read per piece; bound by latency.
// Traffic: a few numbers in sectors of 32 bytes.
// Idea: in f64 and in one order.
extern "C" __global__ void __launch_bounds__(32)
    anchor_fwd_sum_f32(const double* __restrict__ partial, const float* __restrict__ given, float* __restrict__ loss,
                       int samples, int winners, int pieces, double each, double w_a, double w_m) {
    double held = 0.0, missed = 0.0;
    for (int i = threadIdx.x; i < samples * pieces; i += 32) {
        held += partial[2 * i];
        if (i < winners * pieces) missed += partial[2 * i + 1];
    }
    held = warp_sum(held) / (each * samples);
    missed = warp_sum(missed) / (each * winners);
    if (threadIdx.x == 0) *loss = (float)((double)*given + w_a * held + w_m * missed);
}
