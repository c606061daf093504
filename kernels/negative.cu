// Coupled-negative synthesis: the CUDA side of src/ops/negative.rs, from the noise's counter instead of the noise.
#include "common/philox.cuh"

// coupled_negative_fwd: the adversarial loser of each winner, at the winner's own σ and ε
//   x_σ = (1−σ)·x + σ·ε,  v* = ε − x,  step = λσ·(v* − v_φ)
//   x_σ_a = x_σ + (1−σ)·step,  v*_a = v* − step,  x_a = x + step
// Shapes: x, v_phi, x_sigma_a, v_star_a, x_a [samples, each]; sigma [samples]; at one Stream, whose normal number
//   first + i is ε's element i. x_a may be null: not wanted.
// Layout: contiguous, f32, each value aligned to itself; x and v_phi are only read and may each be one of the outputs;
//   the outputs differ.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 2 values read, 3 written per element (20 bytes), about 70 operations; near the balance of both.
// Idea: ε, x_σ and v* are never stored: a thread makes four normals from their counter and uses each once. The bits are
//   the CPU's: same counter, same order of the same roundings.
extern "C" __global__ void __launch_bounds__(256)
    coupled_negative_fwd_f32(const float* x, const float* v_phi, const float* sigma, const Stream* at, float lambda,
                             float* x_sigma_a, float* v_star_a, float* x_a, i64 each) {
    Stream s = *at;
    float level = sigma[blockIdx.y];
    float keep = sub(1.0f, level), c = mul(lambda, level);
    i64 begin = (i64)blockIdx.y * each; // this sample's elements are begin .. begin + each of all
    u64 first = s.first + (u64)begin;
    int skip = (int)(first & 3);
    u64 block0 = first >> 2;
    i64 blocks = (each + skip + 3) >> 2;
    for (i64 b = (i64)blockIdx.x * blockDim.x + threadIdx.x; b < blocks; b += (i64)gridDim.x * blockDim.x) {
        float eps[4];
        four_normals(s, block0 + b, eps);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            i64 i = b * 4 - skip + k;
            if (i < 0 || i >= each) continue;
            i += begin;
            float clean = x[i];
            float x_sigma = add(mul(keep, clean), mul(level, eps[k]));
            float v_star = sub(eps[k], clean);
            float step = mul(c, sub(v_star, v_phi[i]));
            x_sigma_a[i] = add(x_sigma, mul(keep, step));
            v_star_a[i] = sub(v_star, step);
            if (x_a) x_a[i] = add(clean, step);
        }
    }
}
