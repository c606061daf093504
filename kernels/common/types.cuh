// Names of integer types, bf16 storage, and 16-byte pieces of either dtype read and written as f32.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// bf16 is storage: arithmetic is f32.
struct bf16 {
    u16 bits;
};

struct alignas(16) Bytes16 {
    u32 x, y, z, w;
};

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two values rounded to nearest even, `lo` in the lower half.
__device__ __forceinline__ u32 pair_of(float lo, float hi) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ float load(const bf16* p) { return __uint_as_float((u32)p->bits << 16); }
__device__ __forceinline__ void store(float* p, float v) { *p = v; }
__device__ __forceinline__ void store(bf16* p, float v) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    p->bits = bits;
}

// 16 bytes of T as `Piece<T>::N` f32 values.
template <class T> struct Piece;

template <> struct Piece<float> {
    static constexpr int N = 4;
    static __device__ __forceinline__ void unpack(Bytes16 b, float (&v)[4]) {
        v[0] = __uint_as_float(b.x);
        v[1] = __uint_as_float(b.y);
        v[2] = __uint_as_float(b.z);
        v[3] = __uint_as_float(b.w);
    }
    static __device__ __forceinline__ Bytes16 pack(const float (&v)[4]) {
        return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
    }
};

template <> struct Piece<bf16> {
    static constexpr int N = 8;
    static __device__ __forceinline__ void unpack(Bytes16 b, float (&v)[8]) {
        v[0] = low(b.x), v[1] = high(b.x), v[2] = low(b.y), v[3] = high(b.y);
        v[4] = low(b.z), v[5] = high(b.z), v[6] = low(b.w), v[7] = high(b.w);
    }
    static __device__ __forceinline__ Bytes16 pack(const float (&v)[8]) {
        return {pair_of(v[0], v[1]), pair_of(v[2], v[3]), pair_of(v[4], v[5]), pair_of(v[6], v[7])};
    }
};

// Whether every pointer is aligned to BYTES; null is.
template <int BYTES = 16, class... P> __device__ __forceinline__ bool aligned(const P*... p) {
    return ((... | reinterpret_cast<u64>(p)) & (BYTES - 1)) == 0;
}

// The 16 bytes at `p`, which must be aligned to them.
template <class T> __device__ __forceinline__ void load_piece(const T* p, float (&v)[Piece<T>::N]) {
    Piece<T>::unpack(*reinterpret_cast<const Bytes16*>(p), v);
}
template <class T> __device__ __forceinline__ void store_piece(T* p, const float (&v)[Piece<T>::N]) {
    *reinterpret_cast<Bytes16*>(p) = Piece<T>::pack(v);
}

// Four values at `p` in global memory, aligned to 16, in one store: where the compiler takes the other apart into four.
__device__ __forceinline__ void store_whole(float* p, const float (&v)[4]) {
    asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(p)), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}

// Four values at `p`, which must be aligned to them.
__device__ __forceinline__ void load_four(const float* p, float (&v)[4]) { load_piece(p, v); }
__device__ __forceinline__ void load_four(const bf16* p, float (&v)[4]) {
    uint2 pairs = *reinterpret_cast<const uint2*>(p);
    v[0] = low(pairs.x), v[1] = high(pairs.x), v[2] = low(pairs.y), v[3] = high(pairs.y);
}
__device__ __forceinline__ void store_four(float* p, const float (&v)[4]) { store_piece(p, v); }
__device__ __forceinline__ void store_four(bf16* p, const float (&v)[4]) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pair_of(v[0], v[1]), pair_of(v[2], v[3]));
}
