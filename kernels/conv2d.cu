// Convolution of `src/ops/conv2d.rs`: planes to rows of channels in either dtype, and the product in bf16.
#include "common/conv2d.cuh"
#include "common/gemm.cuh"

using Tile = Shape<64, 128, 2, 4>;

// conv2d_fwd: y[b, o, position] = f(Σ_k w[o, k]·x̂[b, position's window, k] + bias[o] + resid[b, o, position])
// Shapes: w [out, window, window, channels], x [batch, h, w, channels], bias [out] of either dtype or null, resid or
//   null and y [batch, out, h', w']; any of them ≥ 0, channels a multiple of 8.
// Layout: contiguous; w and x aligned to 16 bytes, the rest to itself. resid may be y, nothing else overlaps.
// Grid: x ⌈out/64⌉·⌈h'·w'/128⌉, y batch; blocks of 256.
// Cost: 2·batch·out·h'·w'·depth FLOPs, depth being window·window·channels; 2 bytes of w, x, resid and y; bound by
//   the tensor cores from 64 channels on.
// Dynamic shared: 49152 bytes
// Traffic: a value of x is read by every window it is in and by every 64 channels of y, from the L2 cache but for the
//   first time.
// Idea: the matrix of all windows is never made. Channels are last, so that 8 neighbours of k are 16 aligned bytes of
//   one place of x, copied asynchronously into the tile that the linear layer's loop over k multiplies; where a window
//   leaves x̂ the copy is of zeros. Channels of y are rows: a warp stores neighbouring positions.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv2d_fwd_bf16(const bf16* w, const bf16* x, const Floats bias, const bf16* resid, bf16* y, const Conv p) {
    extern __shared__ __align__(128) u8 memory[];
    int tile_row, tile_column;
    tile_of(blockIdx.x, (p.out + Tile::M - 1) / Tile::M, (p.positions + Tile::N - 1) / Tile::N, tile_row, tile_column);
    int o0 = tile_row * Tile::M, first = tile_column * Tile::N;
    x += (i64)blockIdx.y * (p.high >> p.up) * (p.wide >> p.up) * p.channels;
    // Of this thread's pieces of the windows' tile, which are of two rows and all of one column.
    constexpr int ROWS = Tile::N * 4 / Tile::THREADS;
    int row = threadIdx.x / 4, piece = threadIdx.x % 4;
    Corner corners[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) corners[i] = corner(p, first + row + i * (Tile::THREADS / 4));
    Walk walk{0, 0, 0};
    walk.by(piece * 8, p);
    auto fetch_both = [&](int step, u32 to) {
        int k0 = step * DEPTH;
        fetch<Tile, ALONG_K, Tile::M, true>(to, Matrix<bf16>{w, p.depth}, o0, p.out, k0, p.depth, Same());
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int at = walk.at(corners[i], p);
            u32 there = to + Tile::OPERAND + place<ALONG_K, Tile::N>(row + i * (Tile::THREADS / 4), piece);
            copy16(there, at < 0 ? x : x + at, at < 0 ? 0 : 16);
        }
        walk.by(DEPTH, p);
    };
    float acc[Tile::WM / 16][Tile::WN / 8][4] = {};
    multiply<Tile, ALONG_K, ALONG_K>(acc, shared_address(memory), (p.depth + DEPTH - 1) / DEPTH, Tile::WN / 16,
                                     fetch_both);
    bool whole = p.positions % 2 == 0 && aligned<4>(y, resid);
    each_pair<Tile>(acc, o0, first, Tile::WN / 16, [&](int o, int position, float(&v)[2]) {
        finish<2>(p, bias, resid, y, o, position, whole, v);
    });
}

// conv2d_fwd_turn: to[b, position, c] = from[b, c, position], zero in the channels that `from` lacks
// Shapes: from [batch, channels, positions], to [batch, positions, padded], channels ≤ padded.
// Layout: contiguous, aligned to a value; they do not overlap.
// Grid: x ⌈positions/32⌉, y ⌈padded/32⌉, z batch; blocks of 256.
// Cost: 2 values moved per element; bound by bandwidth.
// Traffic: planes and rows that are no multiple of 32 bytes, as a window's 9 values, begin amid a sector.
// Idea: 32×32 values turn in shared memory, so that both sides are taken along what is contiguous.
template <class T>
__device__ __forceinline__ void turn(const T* from, T* to, int channels, int padded, int positions) {
    __shared__ float tile[32][33];
    int p0 = blockIdx.x * 32, c0 = blockIdx.y * 32, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    from += (i64)blockIdx.z * channels * positions, to += (i64)blockIdx.z * padded * positions;
#pragma unroll
    for (int i = warp; i < 32; i += 8) {
        int c = c0 + i, p = p0 + lane;
        tile[i][lane] = c < channels && p < positions ? load(from + (i64)c * positions + p) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = warp; i < 32; i += 8) {
        int c = c0 + lane, p = p0 + i;
        if (c < padded && p < positions) store(to + (i64)p * padded + c, tile[lane][i]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    conv2d_fwd_turn_f32(const float* from, float* to, int channels, int padded, int positions) {
    turn(from, to, channels, padded, positions);
}
extern "C" __global__ void __launch_bounds__(256)
    conv2d_fwd_turn_bf16(const bf16* from, bf16* to, int channels, int padded, int positions) {
    turn(from, to, channels, padded, positions);
}
