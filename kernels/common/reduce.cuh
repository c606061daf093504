// Sums in a fixed order: same values, same bits.
#pragma once
#include "common/types.cuh"

// The sum over a warp, in every lane.
template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

// The sum over a block of WARPS warps, in every thread. `scratch` is shared and holds WARPS values.
template <int WARPS, class T> __device__ __forceinline__ T block_sum(T v, T* scratch) {
    v = warp_sum(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    T sum = scratch[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) sum += scratch[i];
    return sum;
}
