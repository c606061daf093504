// The gap of two residuals in the Sobolev metric: the CUDA side of src/ops/sobolev.rs. d and u go through one complex
// transform as z = d + i·u, y = A z; the gap takes the original d and Im y, the gradient Re y + Im y.
#include "common/reduce.cuh"

struct alignas(8) Complex {
    float x, y;
};
__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.x + b.x, a.y + b.y}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.x - b.x, a.y - b.y}; }
__device__ __forceinline__ Complex operator*(Complex a, Complex b) {
    return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};
}
// a·(∓i): a quarter turn in the transform's direction.
template <int SIGN> __device__ __forceinline__ Complex quarter_turn(Complex a) {
    return SIGN < 0 ? Complex{a.y, -a.x} : Complex{-a.y, a.x};
}

// v[k] = Σ_j v[j]·exp(SIGN·2πi·jk/R), in place, for R = 1, 2, 4, 8, 16.
template <int R, int SIGN> __device__ __forceinline__ void small_dft(Complex* v) {
    if constexpr (R == 2) {
        Complex a = v[0], b = v[1];
        v[0] = a + b, v[1] = a - b;
    } else if constexpr (R == 4) {
        Complex a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = quarter_turn<SIGN>(v[1] - v[3]);
        v[0] = a + c, v[1] = b + d, v[2] = a - c, v[3] = b - d;
    } else if constexpr (R == 8) {
        constexpr float H = 0.70710678118f;
        Complex even[4] = {v[0], v[2], v[4], v[6]}, odd[4] = {v[1], v[3], v[5], v[7]};
        small_dft<4, SIGN>(even);
        small_dft<4, SIGN>(odd);
        odd[1] = odd[1] * Complex{H, SIGN * H};
        odd[2] = quarter_turn<SIGN>(odd[2]);
        odd[3] = odd[3] * Complex{-H, SIGN * H};
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = even[k] + odd[k], v[k + 4] = even[k] - odd[k];
    } else if constexpr (R == 16) {
        constexpr float H = 0.70710678118f, C = 0.92387953251f, S = 0.38268343236f;
        constexpr Complex TURNS[8] = {{1, 0}, {C, S}, {H, H}, {S, C}, {0, 1}, {-S, C}, {-H, H}, {-C, S}};
        Complex even[8], odd[8];
#pragma unroll
        for (int j = 0; j < 8; j++) even[j] = v[2 * j], odd[j] = v[2 * j + 1];
        small_dft<8, SIGN>(even);
        small_dft<8, SIGN>(odd);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            Complex turned = odd[k] * Complex{TURNS[k].x, SIGN * TURNS[k].y};
            v[k] = even[k] + turned, v[k + 8] = even[k] - turned;
        }
    }
}

// A line of N = R1·R2 values is transformed in place in two passes. Element n = j + R2·r; pass one takes, for each j,
// the DFT over r and turns it; pass two, for each k1, the DFT over j. Frequency k1 + R1·k2 ends at position k1·R2 + k2.
// The way back is the same steps in reverse, so nothing is ever put in order.
template <int N> struct Radices {
    static constexpr int R1 = N >= 8 ? 8 : N, R2 = N / R1;
};
template <> struct Radices<16> {
    static constexpr int R1 = 4, R2 = 4;
};
template <> struct Radices<128> {
    static constexpr int R1 = 16, R2 = 8;
};

// The factor exp(SIGN·2πi·j·k/N) for k = 1 .. R1−1 onto v[k]; roots[i] = exp(−2πi·i/N). Both directions read one table:
// were the powers multiplied up in each, the two would be rounded apart, and their phases' difference times ⟨d, A d⟩
// would be in every gap.
template <int SIGN, int R1>
__device__ __forceinline__ void turn(Complex (&v)[R1], const Complex* __restrict__ roots, int j) {
#pragma unroll
    for (int k = 1; k < R1; k++) {
        Complex root = roots[j * k];
        v[k] = v[k] * Complex{root.x, SIGN < 0 ? root.y : -root.y};
    }
}

// The absolute frequency at a position of a transformed line.
template <int N> __device__ __forceinline__ int frequency(int p) {
    constexpr int R1 = Radices<N>::R1, R2 = Radices<N>::R2;
    int f = p / R2 + R1 * (p % R2);
    return f < N - f ? f : N - f;
}

// The weight's quarter in shared memory, whose rows a warp reads at once: a pitch that keeps them in banks of their
// own, and row 32, which none keeps from row 0, 4 further.
template <int N> struct Quarter {
    static constexpr int HALF = N / 2 + 1, PITCH = N == 16 ? HALF + 1 : HALF;
    const float* values;
    static __device__ __forceinline__ int place(int row, int column) {
        return row * PITCH + (N == 64 && row == 32 ? 4 : 0) + column;
    }
    __device__ __forceinline__ float at(int row, int column) const {
        return values[place(frequency<N>(row), frequency<N>(column))];
    }
};

// The weight of every position in global memory, column by column, as a warp reads it.
template <int N> struct Everywhere {
    const float* values;
    __device__ __forceinline__ float at(int row, int column) const { return values[column * N + row]; }
};

// Values from one line of a plane in shared memory to the next: odd, or what keeps short ones apart.
template <int N> constexpr int STRIDE = N == 8 ? 10 : N + 1;

// sobolev_gap_fwd_64, sobolev_gap_fwd_32, sobolev_gap_fwd_16, sobolev_gap_fwd_8: gap and gradient of square planes
//   d = v − v_ref, u = (v − v*) + (v_ref − v*), y = A(d + i·u), A = F⁻¹ w F
//   dot[p] = ⟨d, Im y⟩, partial = scale·(Re y + Im y)
// Shapes: v, v_ref, target, partial [planes, N, N]; dot [planes] f64; weight [N/2 + 1, N/2 + 1]: the frequencies from 0
//   on, the others' being the same, divided by N² (the transform here is not normalised).
//   partial is written for planes below `kept` and may be null where kept = 0. scale = 1/(C·N²).
// Layout: contiguous f32, values aligned to themselves; partial may be none of the inputs.
// Grid: one block of 4·N threads per plane (256, 128, 64, 32).
// Cost: 16·N² bytes moved per plane (64 KB at N = 64), 20·N²·log₂ N + 20·N² FLOPs; bound by shared memory.
// Idea: forward, weight and inverse in one residency. Columns first and last, so that global memory is read and written
//   by the passes themselves, coalesced; the last forward and the first inverse pass share registers; lanes always run
//   across lines of odd stride, so no pass has a bank conflict; d never leaves its thread.
template <int N, int THREADS, class Weight>
__device__ __forceinline__ void gap(const float* __restrict__ v, const float* __restrict__ v_ref,
                                    const float* __restrict__ target, Weight weight, Complex* plane, Complex* roots,
                                    double* dot, float* partial, int kept, float scale) {
    constexpr int R1 = Radices<N>::R1, R2 = Radices<N>::R2, STRIDE = ::STRIDE<N>;
    constexpr int FIRST = N * R2, SECOND = N * R1;     // (line, j) and (line, k1) pairs
    constexpr int TURNS = (FIRST + THREADS - 1) / THREADS; // first-pass pairs of a thread
    __shared__ double scratch[THREADS / 32];
    int tid = threadIdx.x;
    i64 base = (i64)blockIdx.x * N * N;
    float d[TURNS][R1];
    if (tid < N) sincospif(-2.0f * (float)tid / (float)N, &roots[tid].y, &roots[tid].x);
    __syncthreads();

    // Columns, pass one: from global memory. Lane = column.
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        int task = tid + i * THREADS, col = task % N, j = task / N;
        if (task < FIRST) {
            Complex z[R1];
#pragma unroll
            for (int r = 0; r < R1; r++) {
                i64 at = base + (j + R2 * r) * N + col;
                float a = v[at], b = v_ref[at], t = target[at];
                d[i][r] = a - b;
                z[r] = {a - b, (a - t) + (b - t)};
            }
            small_dft<R1, -1>(z);
            turn<-1>(z, roots, j);
#pragma unroll
            for (int k = 0; k < R1; k++) plane[(j + R2 * k) * STRIDE + col] = z[k];
        }
    }
    __syncthreads();
    // Columns, pass two.
    if constexpr (R2 > 1) {
        for (int task = tid; task < SECOND; task += THREADS) {
            Complex z[R2];
            int col = task % N, k1 = task / N;
#pragma unroll
            for (int j = 0; j < R2; j++) z[j] = plane[(k1 * R2 + j) * STRIDE + col];
            small_dft<R2, -1>(z);
#pragma unroll
            for (int j = 0; j < R2; j++) plane[(k1 * R2 + j) * STRIDE + col] = z[j];
        }
        __syncthreads();
    }
    // Rows, pass one. Lane = row.
    for (int task = tid; task < FIRST; task += THREADS) {
        Complex z[R1];
        int row = task % N, j = task / N;
#pragma unroll
        for (int r = 0; r < R1; r++) z[r] = plane[row * STRIDE + j + R2 * r];
        small_dft<R1, -1>(z);
        turn<-1>(z, roots, j);
#pragma unroll
        for (int k = 0; k < R1; k++) plane[row * STRIDE + j + R2 * k] = z[k];
    }
    __syncthreads();
    // Rows: pass two, the weight, and the way back of pass two.
    for (int task = tid; task < SECOND; task += THREADS) {
        Complex z[R2];
        int row = task % N, k1 = task / N;
#pragma unroll
        for (int j = 0; j < R2; j++) z[j] = plane[row * STRIDE + k1 * R2 + j];
        small_dft<R2, -1>(z);
#pragma unroll
        for (int k = 0; k < R2; k++) {
            float w = weight.at(row, k1 * R2 + k);
            z[k] = {z[k].x * w, z[k].y * w};
        }
        small_dft<R2, 1>(z);
#pragma unroll
        for (int j = 0; j < R2; j++) plane[row * STRIDE + k1 * R2 + j] = z[j];
    }
    __syncthreads();
    // Rows, back through pass one.
    for (int task = tid; task < FIRST; task += THREADS) {
        Complex z[R1];
        int row = task % N, j = task / N;
#pragma unroll
        for (int k = 0; k < R1; k++) z[k] = plane[row * STRIDE + j + R2 * k];
        turn<1>(z, roots, j);
        small_dft<R1, 1>(z);
#pragma unroll
        for (int r = 0; r < R1; r++) plane[row * STRIDE + j + R2 * r] = z[r];
    }
    __syncthreads();
    // Columns, back through pass two.
    if constexpr (R2 > 1) {
        for (int task = tid; task < SECOND; task += THREADS) {
            Complex z[R2];
            int col = task % N, k1 = task / N;
#pragma unroll
            for (int k = 0; k < R2; k++) z[k] = plane[(k1 * R2 + k) * STRIDE + col];
            small_dft<R2, 1>(z);
#pragma unroll
            for (int j = 0; j < R2; j++) plane[(k1 * R2 + j) * STRIDE + col] = z[j];
        }
        __syncthreads();
    }
    // Columns, back through pass one, to global memory; the d of these very elements is still here.
    double sum = 0.0;
    bool keep = (int)blockIdx.x < kept;
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        int task = tid + i * THREADS, col = task % N, j = task / N;
        if (task < FIRST) {
            Complex z[R1];
#pragma unroll
            for (int k = 0; k < R1; k++) z[k] = plane[(j + R2 * k) * STRIDE + col];
            turn<1>(z, roots, j);
            small_dft<R1, 1>(z);
#pragma unroll
            for (int r = 0; r < R1; r++) {
                sum += (double)d[i][r] * (double)z[r].y;
                if (keep) partial[base + (j + R2 * r) * N + col] = (z[r].x + z[r].y) * scale;
            }
        }
    }
    sum = block_sum<THREADS / 32>(sum, scratch);
    if (tid == 0) dot[blockIdx.x] = sum;
}

// The same with everything in the kernel's own shared memory.
template <int N>
__device__ __forceinline__ void small_gap(const float* v, const float* v_ref, const float* target, const float* weight,
                                          double* dot, float* partial, int kept, float scale) {
    constexpr int THREADS = 4 * N, HALF = Quarter<N>::HALF, PITCH = Quarter<N>::PITCH;
    __shared__ Complex plane[N * STRIDE<N>], roots[N];
    __shared__ float quarter[HALF * PITCH + 4];
    for (int i = threadIdx.x; i < HALF * PITCH; i += THREADS)
        if (i % PITCH < HALF) quarter[Quarter<N>::place(i / PITCH, i % PITCH)] = weight[i / PITCH * HALF + i % PITCH];
    gap<N, THREADS>(v, v_ref, target, Quarter<N>{quarter}, plane, roots, dot, partial, kept, scale);
}

// Three planes of 64×64 fit a multiprocessor's shared memory, but for the 100 KB of sm_86, sm_89 and sm_120: there a
// thread may have the registers that a third would take.
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define PLANES 2
#else
#define PLANES 3
#endif
extern "C" __global__ void __launch_bounds__(256, PLANES)
    sobolev_gap_fwd_64_f32(const float* v, const float* v_ref, const float* target, const float* weight, double* dot,
                           float* partial, int kept, float scale) {
    small_gap<64>(v, v_ref, target, weight, dot, partial, kept, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    sobolev_gap_fwd_32_f32(const float* v, const float* v_ref, const float* target, const float* weight, double* dot,
                           float* partial, int kept, float scale) {
    small_gap<32>(v, v_ref, target, weight, dot, partial, kept, scale);
}
extern "C" __global__ void __launch_bounds__(64)
    sobolev_gap_fwd_16_f32(const float* v, const float* v_ref, const float* target, const float* weight, double* dot,
                           float* partial, int kept, float scale) {
    small_gap<16>(v, v_ref, target, weight, dot, partial, kept, scale);
}
extern "C" __global__ void __launch_bounds__(32)
    sobolev_gap_fwd_8_f32(const float* v, const float* v_ref, const float* target, const float* weight, double* dot,
                           float* partial, int kept, float scale) {
    small_gap<8>(v, v_ref, target, weight, dot, partial, kept, scale);
}

// sobolev_gap_fwd_128: the same for planes of 128×128
// Shapes: as sobolev_gap_fwd_64's, but weight [128, 128]: element c·128 + r is that of row position r and column
//   position c, position k1·8 + k2 being frequency k1 + 16·k2; divided by 128².
// Layout: contiguous f32, values aligned to themselves; partial may be none of the inputs.
// Grid: one block of 512 per plane.
// Cost: 16·N² bytes moved per plane (256 KB), 20·N²·log₂ N + 20·N² FLOPs; bound by shared memory.
// Dynamic shared: 133120 bytes
// Devices: whose blocks may have them, as those of sm_80, sm_90 and sm_100; others take such planes to cuFFT.
// Traffic: the weight, a quarter of a plane's bytes, is read again for every plane, from the L2 cache.
// Idea: radices 16 and 8, a plane in the shared memory of one multiprocessor; its weight, which no longer fits beside
//   it, lies in global memory in the order in which warps read it.
extern "C" __global__ void __launch_bounds__(512)
    sobolev_gap_fwd_128_f32(const float* v, const float* v_ref, const float* target, const float* __restrict__ weight,
                            double* dot, float* partial, int kept, float scale) {
    extern __shared__ __align__(16) u8 dynamic[];
    Complex *plane = reinterpret_cast<Complex*>(dynamic), *roots = plane + 128 * STRIDE<128>;
    gap<128, 512>(v, v_ref, target, Everywhere<128>{weight}, plane, roots, dot, partial, kept, scale);
}

// One direction of one dimension of a plane in shared memory by the definition: `count` lines of n values, element j of
// line l at l·line + j·step; table[i] = exp(−2πi·i/n). Lanes run across lines: they read one factor all, and the plane
// without conflicts, since a row's pitch is odd. Where the lines are no multiple of 32 a warp goes on with the first
// lines of the next frequency, at times in the banks of this one's last: idle lanes would cost more.
template <int SIGN>
__device__ __forceinline__ void dft_lines(const Complex* from, Complex* to, const Complex* table, int n, int count,
                                          int line, int step) {
    for (int task = threadIdx.x; task < n * count; task += 256) {
        int l = task % count, k = task / count;
        const Complex* at = from + l * line;
        Complex sum = {0.0f, 0.0f};
        int turn = 0;
        for (int j = 0; j < n; j++) {
            Complex w = table[turn];
            w.y *= -SIGN;
            sum = sum + at[j * step] * w;
            turn += k;
            if (turn >= n) turn -= n;
        }
        to[l * line + k * step] = sum;
    }
    __syncthreads();
}

// sobolev_gap_fwd_dft: the same for planes of any height and width up to 64
// Shapes: v, v_ref, target, partial [planes, h, w]; dot [planes] f64; weight [h/2 + 1, w/2 + 1] as
//   sobolev_gap_fwd_64's, divided by h·w; partial, kept and scale as there, scale = 1/(C·h·w).
// Layout: contiguous f32, values aligned to themselves; partial may be none of the inputs.
// Grid: one block of 256 per plane.
// Cost: 16·h·w bytes moved per plane, 16·h·w·(h + w) FLOPs; bound by shared memory.
// Dynamic shared: 66560 bytes at most; 16·h·(w | 1) are used.
// Conflicts: where h or w is no multiple of 32 a warp spans two frequencies, whose lines and factors may share banks; a
//   warp that kept to one would idle in more lanes than that costs.
// Idea: a DFT by its definition from a table of n roots, from one half of shared memory to the other: odd sizes need no
//   algorithm of their own.
extern "C" __global__ void __launch_bounds__(256, 2)
    sobolev_gap_fwd_dft_f32(const float* __restrict__ v, const float* __restrict__ v_ref,
                            const float* __restrict__ target, const float* __restrict__ weight, double* dot,
                            float* partial, int h, int w, int kept, float scale) {
    extern __shared__ __align__(16) u8 dynamic[];
    __shared__ Complex down[64], across[64];
    __shared__ float quarter[33 * 33];
    __shared__ double scratch[8];
    int tid = threadIdx.x, area = h * w, pitch = w | 1, columns = w / 2 + 1;
    Complex *plane = reinterpret_cast<Complex*>(dynamic), *other = plane + h * pitch;
    i64 base = (i64)blockIdx.x * area;
    if (tid < h) sincospif(-2.0f * (float)tid / (float)h, &down[tid].y, &down[tid].x);
    if (tid < w) sincospif(-2.0f * (float)tid / (float)w, &across[tid].y, &across[tid].x);
    for (int i = tid; i < (h / 2 + 1) * columns; i += 256) quarter[i] = weight[i];
    float d[16];
#pragma unroll
    for (int k = 0; k < 16; k++) {
        int i = tid + k * 256;
        d[k] = 0.0f;
        if (i < area) {
            float a = v[base + i], b = v_ref[base + i], t = target[base + i];
            d[k] = a - b;
            plane[i / w * pitch + i % w] = {a - b, (a - t) + (b - t)};
        }
    }
    __syncthreads();
    dft_lines<-1>(plane, other, across, w, h, pitch, 1);
    dft_lines<-1>(other, plane, down, h, w, 1, pitch);
    for (int i = tid; i < area; i += 256) {
        int row = i / w, column = i % w;
        Complex& z = plane[row * pitch + column];
        row = row < h - row ? row : h - row, column = column < w - column ? column : w - column;
        float by = quarter[row * columns + column];
        z = {z.x * by, z.y * by};
    }
    __syncthreads();
    dft_lines<1>(plane, other, down, h, w, 1, pitch);
    dft_lines<1>(other, plane, across, w, h, pitch, 1);
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < 16; k++) {
        int i = tid + k * 256;
        if (i < area) {
            Complex y = plane[i / w * pitch + i % w];
            sum += (double)d[k] * (double)y.y;
            if ((int)blockIdx.x < kept) partial[base + i] = (y.x + y.y) * scale;
        }
    }
    sum = block_sum<8>(sum, scratch);
    if (tid == 0) dot[blockIdx.x] = sum;
}

// sobolev_gap_fwd_pack: z = d + i·u, for the transform by cuFFT: a C2C forward follows, then sobolev_gap_fwd_weigh, a
//   C2C inverse, sobolev_gap_fwd_unpack and sobolev_gap_fwd_sum. For planes of any size.
// Shapes: v, v_ref, target [n] for n = planes·h·w, z [n] complex.
// Layout: contiguous f32; two values at a time where z is aligned to 16 bytes and the others to 8, else z to 8, the
//   others to 4; z overlaps none of them.
// Grid: any number of blocks of 256; 8 per multiprocessor fill it.
// Cost: 20 bytes moved per value, 4 FLOPs; bound by bandwidth.
// Idea: one complex transform does for both real planes.
extern "C" __global__ void __launch_bounds__(256)
    sobolev_gap_fwd_pack_f32(const float* __restrict__ v, const float* __restrict__ v_ref,
                             const float* __restrict__ target, Complex* __restrict__ z, i64 n) {
    i64 step = (i64)gridDim.x * blockDim.x, me = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 pieces = aligned(z) && aligned<8>(v, v_ref, target) ? n / 2 : 0;
    for (i64 i = me; i < pieces; i += step) {
        float2 a = *reinterpret_cast<const float2*>(v + i * 2), b = *reinterpret_cast<const float2*>(v_ref + i * 2);
        float2 t = *reinterpret_cast<const float2*>(target + i * 2);
        float packed[4] = {a.x - b.x, (a.x - t.x) + (b.x - t.x), a.y - b.y, (a.y - t.y) + (b.y - t.y)};
        store_piece(&z[i * 2].x, packed);
    }
    for (i64 i = pieces * 2 + me; i < n; i += step)
        z[i] = {v[i] - v_ref[i], (v[i] - target[i]) + (v_ref[i] - target[i])};
}

// sobolev_gap_fwd_weigh: z ← w ⊙ z, every plane by the same weight
// Shapes: z [planes, area] complex; weight [area] in the DFT's order, divided by area (cuFFT's transforms are not
//   normalised).
// Layout: contiguous f32; z aligned to 8, weight to 4; they do not overlap.
// Grid: x any number of blocks of 256 over a plane, y any number over the planes.
// Cost: 16 bytes moved per value (the weight stays in cache), 2 FLOPs; bound by bandwidth.
// Idea: a thread keeps its weight and walks the planes.
extern "C" __global__ void __launch_bounds__(256)
    sobolev_gap_fwd_weigh_f32(const float* __restrict__ weight, Complex* __restrict__ z, int area, int planes) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < area; i += gridDim.x * 256) {
        float w = weight[i];
        for (int plane = blockIdx.y; plane < planes; plane += gridDim.y) {
            Complex* at = z + (i64)plane * area + i;
            *at = {at->x * w, at->y * w};
        }
    }
}

// sobolev_gap_fwd_unpack: dot[p, b] = ⟨d, Im z⟩ over the b-th piece of plane p, partial = scale·(Re z + Im z)
// Shapes: z [planes, area] complex, transformed back; v, v_ref [planes, area]; dot [planes, pieces] f64; partial
//   [kept, area], may be null where kept = 0. scale = 1/(C·area).
// Layout: contiguous f32, values aligned to themselves; partial may be none of the inputs.
// Grid: x ⌈area/4096⌉, which is pieces; y the planes; blocks of 256.
// Cost: 20 bytes moved per value, 6 FLOPs; bound by bandwidth.
// Idea: pieces of a fixed size, so that the order of the sum, and with it the bits, follow from the plane's size alone.
extern "C" __global__ void __launch_bounds__(256)
    sobolev_gap_fwd_unpack_f32(const Complex* __restrict__ z, const float* __restrict__ v,
                               const float* __restrict__ v_ref, double* __restrict__ dot, float* __restrict__ partial,
                               int area, int kept, float scale) {
    __shared__ double scratch[8];
    int begin = blockIdx.x * 4096, end = begin + 4096 < area ? begin + 4096 : area;
    i64 base = (i64)blockIdx.y * area;
    bool keep = (int)blockIdx.y < kept;
    double sum = 0.0;
    for (int i = begin + threadIdx.x; i < end; i += 256) {
        Complex y = z[base + i];
        sum += (double)(v[base + i] - v_ref[base + i]) * (double)y.y;
        if (keep) partial[base + i] = (y.x + y.y) * scale;
    }
    sum = block_sum<8>(sum, scratch);
    if (threadIdx.x == 0) dot[(i64)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// sobolev_gap_fwd_sum: gap[n] = Σ over a sample's channels (and their pieces) of dot / (C·H·W)
// Shapes: dot [samples, parts] f64; gap [samples] f32; parts = C (times the pieces of a plane); size = C·H·W.
// Layout: contiguous, values aligned to themselves; they do not overlap.
// Grid: samples blocks of 32: a warp per sample.
// Cost: 8·parts bytes read per sample; bound by latency.
// Traffic: a sample's gap is 4 bytes, and a sector of 32 is what a block writes.
// Idea: in f64 and in one order: a sample's bits do not depend on its neighbours.
extern "C" __global__ void __launch_bounds__(32)
    sobolev_gap_fwd_sum_f32(const double* dot, float* gap, int parts, double size) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < parts; i += 32) sum += dot[(i64)blockIdx.x * parts + i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) gap[blockIdx.x] = (float)(sum / size);
}

// sobolev_gap_bwd: dv = partial·dgap of its sample, added to dv where accumulate ≠ 0
// Shapes: partial, dv [samples, each]; dgap [samples].
// Layout: contiguous f32; 16 bytes at a time where both are aligned to them and each is a multiple of 4; dv may be
//   partial.
// Grid: x any number of blocks of 256 over a sample, y the samples.
// Cost: 8 bytes moved per value (12 accumulating), 1 FLOP; bound by bandwidth.
// Idea: only what the DPO coefficient scales; the metric was applied in the forward pass.
extern "C" __global__ void __launch_bounds__(256)
    sobolev_gap_bwd_f32(const float* partial, const float* dgap, float* dv, i64 each, int accumulate) {
    float g = dgap[blockIdx.y];
    i64 base = (i64)blockIdx.y * each, step = (i64)gridDim.x * 256, me = (i64)blockIdx.x * 256 + threadIdx.x;
    i64 pieces = each % 4 == 0 && aligned(partial, dv) ? each / 4 : 0;
    for (i64 i = me; i < pieces; i += step) {
        float v[4], old[4];
        load_piece(partial + base + i * 4, v);
        if (accumulate) load_piece(dv + base + i * 4, old);
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = accumulate ? old[k] + v[k] * g : v[k] * g;
        store_whole(dv + base + i * 4, v);
    }
    for (i64 i = pieces * 4 + me; i < each; i += step) {
        float v = partial[base + i] * g;
        dv[base + i] = accumulate ? dv[base + i] + v : v;
    }
}
