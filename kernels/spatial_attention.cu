// The softmax of src/ops/spatial_attention.rs, between products that are the linear layer's.
#include "common/types.cuh"
#include "common/reduce.cuh"

__device__ __forceinline__ float block_max(float v, float* scratch) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    float most = scratch[0];
#pragma unroll
    for (int i = 1; i < 8; i++) most = fmaxf(most, scratch[i]);
    return most;
}

// spatial_attention_fwd_softmax: p[i] = softmax(scale·p[i]), row by row, in place
// Shapes: p [rows, n], n ≥ 1; scale > 0.
// Layout: contiguous, values aligned to themselves.
// Grid: rows blocks of 256.
// Cost: 8 bytes moved per value, 8 FLOPs; bound by bandwidth.
// Traffic: a row is read three times and written twice by the block that has just done so, from a cache; rows that are
//   no multiple of 8 begin amid a sector.
// Idea: a block owns its row, and a thread its values of it, so that nothing but the two sums is shared.
extern "C" __global__ void __launch_bounds__(256) spatial_attention_fwd_softmax_f32(float* p, int n, float scale) {
    __shared__ float scratch[8];
    p += (i64)blockIdx.x * n;
    float most = __uint_as_float(0xff800000u), sum = 0.0f; // −∞
    for (int j = threadIdx.x; j < n; j += 256) most = fmaxf(most, p[j]);
    most = block_max(most, scratch);
    for (int j = threadIdx.x; j < n; j += 256) {
        float e = expf((p[j] - most) * scale);
        p[j] = e, sum += e;
    }
    sum = 1.0f / block_sum<8>(sum, scratch);
    for (int j = threadIdx.x; j < n; j += 256) p[j] *= sum;
}
