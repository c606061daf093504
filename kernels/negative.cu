// Coupled-negative synthesis: the CUDA side of src/ops/negative.rs, from the noise's counter instead of the noise.
#include "common/philox.cuh"

// coupled_negative_fwd: the adversarial loser of each winner, at the winner's own σ and ε
//   x_σ = (1−σ)·x + σ·ε,  v* = ε − x,  step = λσ·(v* − v_φ)
//   x_σ_a = x_σ + (1−σ)·step,  v*_a = v* − step,  x_a = x + step
// Shapes: x, v_phi, x_sigma_a, v_star_a, x_a [samples, each]; sigma [samples]; at one Stream, whose normal number
//   first + i is ε's element i. x_a may be null: not wanted.
// Layout: contiguous f32; 16 bytes at a time where all are aligned to them and `first` and each are multiples of 4; x
//   and v_phi are only read and may each be one of the outputs; the outputs differ.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 2 values read, 3 written per element (20 bytes), about 70 operations; near the balance of both.
// Idea: ε, x_σ and v* are never stored: a thread makes four normals from their counter and uses each once. The bits are
//   the CPU's: same counter, same order of the same roundings.
extern "C" __global__ void __launch_bounds__(256)
    coupled_negative_fwd_f32(const float* x, const float* v_phi, const float* sigma, const Stream* at, float lambda,
                             float* x_sigma_a, float* v_star_a, float* x_a, i64 each) {
    Stream s = stream_of(at);
    float level = sigma[blockIdx.y];
    float keep = sub(1.0f, level), c = mul(lambda, level);
    i64 begin = (i64)blockIdx.y * each; // this sample's elements are begin .. begin + each of all
    u64 first = s.first + (u64)begin;
    int skip = (int)(first & 3);
    u64 block0 = first >> 2;
    i64 blocks = (each + skip + 3) >> 2;
    // The four normals of a counter are then four neighbours on a 16-byte boundary.
    bool whole = skip == 0 && (each & 3) == 0 && aligned(x, v_phi, x_sigma_a, v_star_a) && aligned(x_a);
    for (i64 b = (i64)blockIdx.x * blockDim.x + threadIdx.x; b < blocks; b += (i64)gridDim.x * blockDim.x) {
        float eps[4], clean[4], v[4], loser[4], target[4];
        four_normals(s, block0 + b, eps);
        i64 at0 = begin + b * 4 - skip;
        if (whole) {
            load_piece(x + at0, clean);
            load_piece(v_phi + at0, v);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                i64 i = at0 + k - begin;
                bool inside = i >= 0 && i < each;
                clean[k] = inside ? x[at0 + k] : 0.0f;
                v[k] = inside ? v_phi[at0 + k] : 0.0f;
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float x_sigma = add(mul(keep, clean[k]), mul(level, eps[k]));
            float v_star = sub(eps[k], clean[k]);
            float step = mul(c, sub(v_star, v[k]));
            loser[k] = add(x_sigma, mul(keep, step));
            target[k] = sub(v_star, step);
            clean[k] = add(clean[k], step);
        }
        if (whole) {
            store_whole(x_sigma_a + at0, loser);
            store_whole(v_star_a + at0, target);
            if (x_a) store_whole(x_a + at0, clean);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                i64 i = at0 + k - begin;
                if (i < 0 || i >= each) continue;
                x_sigma_a[at0 + k] = loser[k];
                v_star_a[at0 + k] = target[k];
                if (x_a) x_a[at0 + k] = clean[k];
            }
        }
    }
}

// coupled_negative_given_fwd: the same where the noised winner and its target are at hand
// Shapes: x, x_sigma, v_star, v_phi, x_sigma_a, v_star_a, x_a [samples, each]; sigma [samples].
// Layout: contiguous f32, values aligned to themselves; no output is an input or another output.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 4 values read, 3 written per element (28 bytes), 8 FLOPs; bound by bandwidth.
// Idea: what replays recorded noise; training makes its noise itself, in the kernel above.
extern "C" __global__ void __launch_bounds__(256)
    coupled_negative_given_fwd_f32(const float* x, const float* x_sigma, const float* v_star, const float* v_phi,
                                   const float* sigma, float lambda, float* x_sigma_a, float* v_star_a, float* x_a,
                                   i64 each) {
    float level = sigma[blockIdx.y];
    float keep = sub(1.0f, level), c = mul(lambda, level);
    i64 begin = (i64)blockIdx.y * each;
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < each; i += (i64)gridDim.x * 256) {
        i64 at = begin + i;
        float target = v_star[at], step = mul(c, sub(target, v_phi[at]));
        x_sigma_a[at] = add(x_sigma[at], mul(keep, step));
        v_star_a[at] = sub(target, step);
        x_a[at] = add(x[at], step);
    }
}

// coupled_negative_bwd: the gradients of x, x_σ, v* and v_φ as separate inputs; with c = λσ and
//   de = c·((1−σ)·dx_σ_a − dv*_a + dx_a):  dx = dx_a,  dx_σ = dx_σ_a,  dv* = dv*_a + de,  dv_φ = −de
// Shapes: dx_sigma_a, dv_star_a, dx_a [samples, each], each null where it is 0; sigma [samples]; dx, dx_sigma, dv_star,
//   dv_phi [samples, each], each null where it is not wanted. Bit i of accumulate: output i, in this order, is added
//   to.
// Layout: contiguous f32, values aligned to themselves; no output is an input or another output.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 3 values read, 4 written per element at most (28 bytes), 10 FLOPs; bound by bandwidth.
// Idea: linear in everything but σ, so nothing but σ was saved.
extern "C" __global__ void __launch_bounds__(256)
    coupled_negative_bwd_f32(const float* dx_sigma_a, const float* dv_star_a, const float* dx_a, const float* sigma,
                             float lambda, float* dx, float* dx_sigma, float* dv_star, float* dv_phi, i64 each,
                             int accumulate) {
    float level = sigma[blockIdx.y], c = lambda * level, keep = 1.0f - level;
    i64 begin = (i64)blockIdx.y * each;
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < each; i += (i64)gridDim.x * 256) {
        i64 at = begin + i;
        float a = dx_sigma_a ? dx_sigma_a[at] : 0.0f, b = dv_star_a ? dv_star_a[at] : 0.0f;
        float d = dx_a ? dx_a[at] : 0.0f, de = c * (keep * a - b + d);
        if (dx) dx[at] = accumulate & 1 ? dx[at] + d : d;
        if (dx_sigma) dx_sigma[at] = accumulate & 2 ? dx_sigma[at] + a : a;
        if (dv_star) dv_star[at] = accumulate & 4 ? dv_star[at] + (b + de) : b + de;
        if (dv_phi) dv_phi[at] = accumulate & 8 ? dv_phi[at] - de : -de;
    }
}
