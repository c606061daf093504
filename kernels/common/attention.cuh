// What attention in either dtype shares: where a row of the joint sequence lies, its group, δ.
#pragma once
#include "common/reduce.cuh"

#define MINUS_INFINITY __int_as_float(0xff800000)

// The text's and the stream's tensor, each [batch, rows, heads·hd].
template <class T> struct Side {
    T* text;
    T* stream;
};

struct Geometry {
    int heads, hd;
    int q_text, q_stream; // queries of a sample
    int k_text, k_stream; // keys
    int img;              // stream tokens of the image; the rest are the condition's
    float scale;          // 1/√hd
    float scale2;         // log₂e/√hd
    int unused;
};

// Row j of head h of sample b of the joint sequence text, stream.
template <class T>
__device__ __forceinline__ T* row_of(const Side<T>& side, int text, int stream, const Geometry& g, int b, int h, int j) {
    T* base = j < text ? side.text + ((i64)b * text + j) * g.heads * g.hd
                       : side.stream + ((i64)b * stream + (j - text)) * g.heads * g.hd;
    return base + (i64)h * g.hd;
}

// Which row of the bias a query reads: 0 text, 1 image, 2 condition.
__device__ __forceinline__ int group_of(int query, const Geometry& g) {
    return query < g.q_text ? 0 : query - g.q_text < g.img ? 1 : 2;
}

// δ of the warp's 8 queries, which lane 0 .. 7 write together.
template <class T>
__device__ __forceinline__ void delta(const Side<const T>& o, const Side<const T>& d_o, float* value, const Geometry& g) {
    int lane = threadIdx.x & 31, h = blockIdx.y, b = blockIdx.z, queries = g.q_text + g.q_stream;
    int first = (blockIdx.x * 8 + (threadIdx.x >> 5)) * 8;
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int query = first + i;
        float sum = 0.0f;
        if (query < queries && (query < g.q_text ? d_o.text : d_o.stream)) {
            const T* a = row_of(o, g.q_text, g.q_stream, g, b, h, query);
            const T* d = row_of(d_o, g.q_text, g.q_stream, g, b, h, query);
            for (int c = lane; c < g.hd; c += 32) sum += load(a + c) * load(d + c);
        }
        sum = warp_sum(sum);
        if (lane == i) mine = sum;
    }
    if (lane < 8 && first + lane < queries) value[((i64)b * g.heads + h) * queries + first + lane] = mine;
}
