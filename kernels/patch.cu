// Latent planes to tokens of 2×2 patches and back: the CUDA side of src/ops/patch.rs.
#include "common/types.cuh"

// Channels and columns of a block's piece.
constexpr int CHANNELS = 16, COLUMNS = 128;

// Where pair `t` of line `line` stands in shared memory, where half a warp reads 16 pairs at once: one of each of 16
// lines, or a few lines' first ones. A line's pairs change places by its number, its bits reversed, and neither meet
// where widths and channels are powers of two.
__device__ __forceinline__ int place(int line, int t) { return line * COLUMNS + 2 * (t ^ (int)(__brev(line) >> 28)); }

// Two neighbours of a line, which are neighbours in a token as well.
__device__ __forceinline__ float2 pair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ float2 pair(const bf16* p) {
    u32 v = *reinterpret_cast<const u32*>(p);
    return make_float2(low(v), high(v));
}
__device__ __forceinline__ void store_pair(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
__device__ __forceinline__ void store_pair(bf16* p, float2 v) { *reinterpret_cast<u32*>(p) = pair_of(v.x, v.y); }

// pack_fwd, unpack_fwd: tokens[b, (y/2)(w/2) + x/2, 4c + 2(y%2) + x%2] = planes[b, c, y, x], and back; added where
//   accumulate ≠ 0
// Shapes: planes [batch, channels, h, w], tokens [batch, (h/2)(w/2), 4·channels], h and w even.
// Layout: contiguous, aligned to a pair of values; they do not overlap.
// Grid: x ⌈w/128⌉·⌈channels/16⌉, y h/2, z batch; blocks of 256.
// Cost: 2 values moved per element (3 accumulating); bound by bandwidth.
// Traffic: lines and tokens that are no multiple of 32 bytes begin amid a sector; those of FLUX.1's latents are whole.
// Idea: two rows of 16 channels turn in shared memory, so that both sides are taken along what is contiguous.
template <bool PACK, class T>
__device__ __forceinline__ void turn(const T* from, T* to, int channels, int h, int w, int accumulate) {
    __shared__ __align__(8) float lines[2 * CHANNELS * COLUMNS];
    int across = (w + COLUMNS - 1) / COLUMNS;
    int x0 = blockIdx.x % across * COLUMNS, c0 = blockIdx.x / across * CHANNELS, row = blockIdx.y;
    int columns = w - x0 < COLUMNS ? w - x0 : COLUMNS, many = channels - c0 < CHANNELS ? channels - c0 : CHANNELS;
    i64 sample = (i64)blockIdx.z * channels * h * w;
    // Pair i in the order of the planes and of the tokens: its place there and its place here.
    auto plane = [&](int i, int& here) {
        int t = i % (columns / 2), line = i / (columns / 2);
        here = place(line, t);
        return sample + ((i64)(c0 + line / 2) * h + 2 * row + line % 2) * w + x0 + 2 * t;
    };
    auto token = [&](int i, int& here) {
        int line = i % (2 * many), t = i / (2 * many);
        here = place(line, t);
        return sample + ((i64)row * (w / 2) + x0 / 2 + t) * 4 * channels + 4 * c0 + 2 * line;
    };
    int count = many * columns, here;
    for (int i = threadIdx.x; i < count; i += 256) {
        i64 at = PACK ? plane(i, here) : token(i, here);
        store_pair(lines + here, pair(from + at));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += 256) {
        i64 at = PACK ? token(i, here) : plane(i, here);
        float2 v = pair(lines + here);
        if (accumulate) {
            float2 old = pair(to + at);
            v.x += old.x, v.y += old.y;
        }
        store_pair(to + at, v);
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
