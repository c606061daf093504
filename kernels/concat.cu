// Blocks of rows moved between arrays of different widths: the CUDA side of src/ops/concat.rs.
#include "common/types.cuh"

// concat_copy: to[r, to_at + i] = from[r, from_at + i] for i < width, added where accumulate ≠ 0
// Shapes: from [rows, from_total], to [rows, to_total], both to the eye: rows are what is apart from the axis.
// Layout: contiguous; 16 bytes at a time where both ends and both totals allow it; they do not overlap.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 2·rows·width values moved (3 accumulating); bound by bandwidth.
// Traffic: where rows begin on no 32 bytes, a sector at their ends is their neighbour's too; those of models are whole.
// Idea: joining and cutting, forward and backward, along either axis, are this one move.
template <class T>
__device__ __forceinline__ void move(const T* from, T* to, i64 rows, i64 width, i64 from_total, i64 from_at,
                                     i64 to_total, i64 to_at, int accumulate) {
    constexpr int N = Piece<T>::N;
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    from += from_at;
    to += to_at;
    if (aligned(from, to) && ((width | from_total | to_total) & (N - 1)) == 0) {
        i64 pieces = width / N;
        for (i64 i = me; i < rows * pieces; i += step) {
            i64 row = i / pieces, at = (i - row * pieces) * N;
            const Bytes16* source = reinterpret_cast<const Bytes16*>(from + row * from_total + at);
            T* target = to + row * to_total + at;
            if (accumulate) {
                float a[N], b[N];
                Piece<T>::unpack(*source, a);
                load_piece(target, b);
#pragma unroll
                for (int k = 0; k < N; k++) a[k] += b[k];
                store_piece(target, a);
            } else {
                *reinterpret_cast<Bytes16*>(target) = *source;
            }
        }
        return;
    }
    for (i64 i = me; i < rows * width; i += step) {
        i64 row = i / width, at = i - row * width;
        T* target = to + row * to_total + at;
        float v = load(from + row * from_total + at);
        store(target, accumulate ? v + load(target) : v);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    concat_copy_f32(const float* from, float* to, i64 rows, i64 width, i64 from_total, i64 from_at, i64 to_total,
                    i64 to_at, int accumulate) {
    move(from, to, rows, width, from_total, from_at, to_total, to_at, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    concat_copy_bf16(const bf16* from, bf16* to, i64 rows, i64 width, i64 from_total, i64 from_at, i64 to_total,
                     i64 to_at, int accumulate) {
    move(from, to, rows, width, from_total, from_at, to_total, to_at, accumulate);
}
