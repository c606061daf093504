// Latent planes to tokens of 2×2 patches and back: the CUDA side of src/ops/patch.rs.
#include "common/types.cuh"

// Channels and columns of a block's piece, and the distance of two lines of it in shared memory: 16 lines apart, whose two
// values lanes read at once, then lie in banks of their own.
constexpr int CHANNELS = 16, COLUMNS = 128, PITCH = COLUMNS + 2;

// pack_fwd, unpack_fwd: tokens[b, (y/2)(w/2) + x/2, 4c + 2(y%2) + x%2] = planes[b, c, y, x], and back; added where
//   accumulate ≠ 0
// Shapes: planes [batch, channels, h, w], tokens [batch, (h/2)(w/2), 4·channels], h and w even.
// Layout: contiguous, values aligned to themselves; they do not overlap.
// Grid: x ⌈w/128⌉·⌈channels/16⌉, y h/2, z batch; blocks of 256.
// Cost: 2 values moved per element (3 accumulating); bound by bandwidth.
// Idea: two rows of 16 channels turn in shared memory, so that both sides are read and written along what is contiguous.
template <bool PACK, class T>
__device__ __forceinline__ void turn(const T* from, T* to, int channels, int h, int w, int accumulate) {
    __shared__ float lines[2 * CHANNELS * PITCH];
    int across = (w + COLUMNS - 1) / COLUMNS;
    int x0 = blockIdx.x % across * COLUMNS, c0 = blockIdx.x / across * CHANNELS, row = blockIdx.y;
    int columns = w - x0 < COLUMNS ? w - x0 : COLUMNS, many = channels - c0 < CHANNELS ? channels - c0 : CHANNELS;
    i64 sample = (i64)blockIdx.z * channels * h * w;
    // Element i in the order of the planes and of the tokens: its place there and its place here.
    auto plane = [&](int i, int& here) {
        int x = i % columns, line = i / columns;
        here = line * PITCH + x;
        return sample + ((i64)(c0 + line / 2) * h + 2 * row + line % 2) * w + x0 + x;
    };
    auto token = [&](int i, int& here) {
        int f = i % (4 * many), t = i / (4 * many);
        here = f / 2 * PITCH + 2 * t + f % 2;
        return sample + ((i64)row * (w / 2) + x0 / 2 + t) * 4 * channels + 4 * c0 + f;
    };
    int count = 2 * many * columns, here;
    for (int i = threadIdx.x; i < count; i += 256) {
        i64 at = PACK ? plane(i, here) : token(i, here);
        lines[here] = load(from + at);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += 256) {
        i64 at = PACK ? token(i, here) : plane(i, here);
        store(to + at, accumulate ? lines[here] + load(to + at) : lines[here]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    pack_fwd_f32(const float* planes, float* tokens, int channels, int h, int w, int accumulate) {
    turn<true>(planes, tokens, channels, h, w, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    pack_fwd_bf16(const bf16* planes, bf16* tokens, int channels, int h, int w, int accumulate) {
    turn<true>(planes, tokens, channels, h, w, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    unpack_fwd_f32(const float* tokens, float* planes, int channels, int h, int w, int accumulate) {
    turn<false>(tokens, planes, channels, h, w, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    unpack_fwd_bf16(const bf16* tokens, bf16* planes, int channels, int h, int w, int accumulate) {
    turn<false>(tokens, planes, channels, h, w, accumulate);
}
