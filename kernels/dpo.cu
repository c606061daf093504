// The preference loss on energy gaps: the CUDA side of src/losses/dpo.rs.
#include "common/reduce.cuh"

// preference_fwd: loss = Σ_l mean_i −log σ(a), a = −β·(gap_w,i − ω·gap_l,i), and its gradient in the gaps
// Shapes: gaps, gradient [(1 + losers)·b], the winners' first; loss [1].
// Layout: contiguous f32, values aligned to themselves; nothing overlaps.
// Grid: 1 block of 256.
// Cost: 8 bytes and some 60 f64 operations per gap; a step has a few dozen gaps: bound by latency.
// Traffic: a few numbers in sectors of 32 bytes.
// Idea: f64 throughout and one fixed order, as the CPU's; rounded once.
extern "C" __global__ void __launch_bounds__(256)
    preference_fwd_f32(const float* __restrict__ gaps, float* __restrict__ gradient, float* __restrict__ loss, int b,
                       int losers, double beta, double weight) {
    __shared__ double scratch[8];
    // −log σ(a) and β·σ(−a)/b of pair i with loser l.
    auto pair = [&](int l, int i, double& coefficient) {
        double a = -beta * ((double)gaps[i] - weight * (double)gaps[(1 + l) * b + i]);
        double e = exp(-fabs(a));
        coefficient = beta * (a >= 0.0 ? e : 1.0) / (1.0 + e) / b;
        return fmax(-a, 0.0) + log1p(e);
    };
    double total = 0.0;
    for (int l = 0; l < losers; l++) {
        double sum = 0.0;
        for (int i = threadIdx.x; i < b; i += 256) {
            double coefficient;
            sum += pair(l, i, coefficient);
            gradient[(1 + l) * b + i] = (float)(-weight * coefficient);
        }
        total += block_sum<8>(sum, scratch) / b;
    }
    for (int i = threadIdx.x; i < b; i += 256) {
        double sum = 0.0;
        for (int l = 0; l < losers; l++) {
            double coefficient;
            pair(l, i, coefficient);
            sum += coefficient;
        }
        gradient[i] = (float)sum;
    }
    if (threadIdx.x == 0) *loss = (float)total;
}
