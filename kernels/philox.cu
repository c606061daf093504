// Standard normals, bit for bit those of src/engine/random.rs.
#include "common/philox.cuh"

// philox_normal: out[i] = normal number at.first + i of stream (at.seed, at.stream)
// Shapes: out [n], any n; at one Stream.
// Layout: out contiguous, four values at a time where it is aligned to four; at aligned to 8; they do not overlap.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 4n bytes written (2n in bf16), about 40n integer and 25n f32 operations; bound by arithmetic.
// Idea: a thread makes the four normals of one counter and, where `first` is a multiple of 4, writes them at once.
template <class T> __device__ __forceinline__ void fill(const Stream* at, T* out, i64 n) {
    Stream s = stream_of(at);
    int skip = (int)(s.first & 3);
    u64 block0 = s.first >> 2;
    i64 blocks = (n + skip + 3) >> 2;
    bool whole = skip == 0 && aligned<4 * sizeof(T)>(out);
    for (i64 b = (i64)blockIdx.x * blockDim.x + threadIdx.x; b < blocks; b += (i64)gridDim.x * blockDim.x) {
        float v[4];
        four_normals(s, block0 + b, v);
        i64 at0 = b * 4 - skip;
        if (whole && at0 + 4 <= n) {
            store_four(out + at0, v);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (at0 + k >= 0 && at0 + k < n) store(out + at0 + k, v[k]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) philox_normal_f32(const Stream* at, float* out, i64 n) {
    fill(at, out, n);
}
extern "C" __global__ void __launch_bounds__(256) philox_normal_bf16(const Stream* at, bf16* out, i64 n) {
    fill(at, out, n);
}
