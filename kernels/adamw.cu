// AdamW with a global gradient-norm clip: the CUDA side of src/ops/adamw.rs.
#include "common/philox.cuh"
#include "common/reduce.cuh"

// What changes per update, in device memory; the host writes the first part (bias corrections in f64), adamw_norm the
// second.
struct Step {
    float step_size;       // lr/(1 − β₁ⁿ)
    float root_correction; // √(1 − β₂ⁿ)
    float keep;            // 1 − lr·λ
    float one_minus_1;     // 1 − β₁
    float beta2;
    float one_minus_2; // 1 − β₂
    float eps;
    float max_norm; // 0: no clip
    float share;    // one over the micro-batches whose sum g is
    float norm;     // share·‖g‖₂
    float clip;     // share·min(1, max_norm/(norm + 1e-6))
    u32 finite;     // 0: the norm is not, and the update does nothing
};

// Elements per block of adamw_partial.
constexpr int PIECE = 1 << 14;

// adamw_partial: partial[b] = Σ g², over the b-th 16384 elements, in f64
// Shapes: g [n], partial [⌈n/16384⌉] f64.
// Layout: contiguous; g 16 bytes at a time where it is aligned to them, partial aligned to 8; they do not overlap.
// Grid: ⌈n/16384⌉ blocks of 256.
// Cost: 4n bytes read, n f64 additions; bound by bandwidth (by f64 on cards with few such units).
// Idea: squares are exact in f64 and summed in a fixed order, so the norm's bits depend on nothing but g.
extern "C" __global__ void __launch_bounds__(256)
    adamw_partial_f32(const float* __restrict__ g, double* partial, i64 n) {
    __shared__ double scratch[8];
    i64 begin = (i64)blockIdx.x * PIECE, end = begin + PIECE < n ? begin + PIECE : n;
    bool whole = aligned(g);
    double sum = 0.0;
    for (i64 i = begin + threadIdx.x * 4; i < end; i += 256 * 4) {
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (whole && i + 4 <= end) {
            load_piece(g + i, v);
        } else {
            for (int k = 0; k < 4; k++)
                if (i + k < end) v[k] = g[i + k];
        }
#pragma unroll
        for (int k = 0; k < 4; k++) sum += (double)v[k] * (double)v[k];
    }
    sum = block_sum<8>(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// adamw_norm: step.norm = share·√Σ partial, step.clip and step.finite from it
// Shapes: partial [blocks] f64; step one Step.
// Layout: contiguous, aligned to 8 bytes; they do not overlap.
// Grid: 1 block of 256.
// Cost: 8·blocks bytes read: a few microseconds, bound by latency.
// Idea: one block, fixed order; the host need not learn the norm before the update is launched.
extern "C" __global__ void __launch_bounds__(256) adamw_norm_f32(const double* partial, int blocks, Step* step) {
    __shared__ double scratch[8];
    double sum = 0.0;
    for (int i = threadIdx.x; i < blocks; i += 256) sum += partial[i];
    sum = block_sum<8>(sum, scratch);
    if (threadIdx.x == 0) {
        float norm = mul((float)sqrt(sum), step->share);
        float most = step->max_norm;
        step->norm = norm;
        step->clip = mul(most > 0.0f ? fminf(__fdiv_rn(most, add(norm, 1e-6f)), 1.0f) : 1.0f, step->share);
        step->finite = isfinite(norm);
    }
}

__device__ __forceinline__ void update(const Step& s, float keep, float& w, float g, float& m, float& v) {
    g = mul(g, s.clip);
    w = mul(w, keep);
    m = add(m, mul(s.one_minus_1, sub(g, m)));
    v = add(mul(s.beta2, v), mul(s.one_minus_2, mul(g, g)));
    float root = add(__fdiv_rn(__fsqrt_rn(v), s.root_correction), s.eps);
    w = sub(w, mul(s.step_size, __fdiv_rn(m, root)));
}

// adamw_update: one update of the elements first .. first + count of the arenas; `half`, if not null, gets w in bf16
// Shapes: w, g, m, v [arena] f32; half [arena] bf16 or null; step one Step. decays ≠ 0: this range is weight-decayed.
// Layout: contiguous; 16 bytes at a time where the arenas' bases are aligned to them (first need not be);
//   nothing overlaps.
// Grid: any number of blocks of 256 over ⌈count/4⌉ + 1; 8 per multiprocessor fill it.
// Cost: 16 bytes read, 12 (14) written, 14 operations per element; bound by bandwidth.
// Idea: one pass over everything, 16 bytes per load, clip and corrections from the step block, so that the launch is
//   the same every step. The bits are the CPU's.
extern "C" __global__ void __launch_bounds__(256)
    adamw_update_f32(float* __restrict__ w, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
                     bf16* __restrict__ half, const Step* __restrict__ step, i64 first, i64 count, int decays) {
    __shared__ Step shared;
    if (threadIdx.x == 0) shared = *step;
    __syncthreads();
    Step s = shared;
    if (!s.finite) return;
    float keep = decays ? s.keep : 1.0f;
    bool whole = aligned(w, g, m, v) && aligned<8>(half);
    i64 end = first + count, last = (end + 3) >> 2;
    i64 q = (first >> 2) + (i64)blockIdx.x * blockDim.x + threadIdx.x;
    for (; q < last; q += (i64)gridDim.x * blockDim.x) {
        i64 i = q * 4;
        if (whole && i >= first && i + 4 <= end) {
            float a[4], b[4], c[4], d[4];
            load_piece(w + i, a);
            load_piece(g + i, b);
            load_piece(m + i, c);
            load_piece(v + i, d);
#pragma unroll
            for (int k = 0; k < 4; k++) update(s, keep, a[k], b[k], c[k], d[k]);
            store_piece(w + i, a);
            store_piece(m + i, c);
            store_piece(v + i, d);
            if (half) store_four(half + i, a);
        } else {
            for (int k = 0; k < 4; k++) {
                i64 j = i + k;
                if (j < first || j >= end) continue;
                update(s, keep, w[j], g[j], m[j], v[j]);
                if (half) store(half + j, w[j]);
            }
        }
    }
}

// adamw_average: average ← keep·average + (1 − keep)·w, the running average of the parameters
// Shapes: w, average [n] f32.
// Layout: contiguous, aligned to 4 bytes; they do not overlap.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 8n bytes read, 4n written, 3n operations; bound by bandwidth.
// Idea: none needed: one coalesced pass, now and then. The bits are the CPU's.
extern "C" __global__ void __launch_bounds__(256)
    adamw_average_f32(float keep, const float* __restrict__ w, float* __restrict__ average, i64 n) {
    float rest = sub(1.0f, keep);
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        average[i] = add(mul(keep, average[i]), mul(rest, w[i]));
}
