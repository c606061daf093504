// What convolution's kernels share in either dtype: its extents, which value a window has where, and what is done to a
// sum before it is stored.
#pragma once
#include "common/linear.cuh"

// y[o, position] = Σ_k w[o, k]·x̂ of the window at that position, k = (row of the window, column, channel). x̂ is x,
// each side doubled `up` times, and zero beyond its edges.
struct Conv {
    int out, positions, width; // y's channels, values of a plane, values of a row
    int depth;                 // terms of a sum
    int channels, high, wide;  // of x̂, channels as they are stored
    int window_high, window_wide;
    int stride, padding, up;
    int relu; // ≠ 0: what is below 0 becomes 0
};

// Where a window begins in x̂; beyond the last position outside of it.
struct Corner {
    int row, column;
};
__device__ __forceinline__ Corner corner(const Conv& p, int position) {
    if (position >= p.positions) return {-(1 << 30), 0};
    return {position / p.width * p.stride - p.padding, position % p.width * p.stride - p.padding};
}

// A place in every window, which walks on along k: divisions would cost more than the products.
struct Walk {
    int channel, column, row;

    __device__ __forceinline__ void by(int k, const Conv& p) {
        channel += k;
        while (channel >= p.channels) {
            channel -= p.channels;
            if (++column == p.window_wide) column = 0, row++;
        }
    }
    // Of the window at `from`, in a sample's [rows, columns, channels]; −1 where x̂ has nothing.
    __device__ __forceinline__ int at(const Corner& from, const Conv& p) const {
        int r = from.row + row, c = from.column + column;
        if (row >= p.window_high || (u32)r >= (u32)p.high || (u32)c >= (u32)p.wide) return -1;
        return ((r >> p.up) * (p.wide >> p.up) + (c >> p.up)) * p.channels + channel;
    }
};

// N neighbours of channel `o`, from `position` on: biased, added to the residual, through ReLU, stored.
template <int N, class T>
__device__ __forceinline__ void finish(const Conv& p, const Floats& bias, const T* resid, T* y, int o, int position,
                                       bool whole, float (&v)[N]) {
    int count = p.positions - position;
    if (o >= p.out || count <= 0) return;
    i64 row = (i64)blockIdx.y * p.out + o;
    Place<N> at{row * p.positions + position, o, position, count, p.positions, whole && count >= N};
    float b = bias.at ? bias[o] : 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++) v[j] += b;
    if (resid) {
        float r[N];
        at.get(resid, r);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] += r[j];
    }
    if (p.relu) {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = fmaxf(v[j], 0.0f);
    }
    at.put(y, v);
}
