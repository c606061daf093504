// What the kernels of attention with scores in memory share in either dtype: where heads lie.
#pragma once
#include "common/linear.cuh"

// Where a matrix begins: at value `first`, and as much further for each sample, head of it, and head of this launch.
struct Origin {
    i64 first, sample, head, slot;
};

// The matrices of a product over heads: block y takes head `skipped` + y of all samples' heads.
struct Heads {
    Origin a, b, c;
    int heads, skipped;

    __device__ __forceinline__ i64 of(const Origin& o) const {
        int z = skipped + blockIdx.y;
        return o.first + z / heads * o.sample + z % heads * o.head + blockIdx.y * o.slot;
    }
};

// The scores of a launch: its rows from query `first` on, as they lie in memory, and what they mean.
struct Scored {
    int rows, keys, pitch;
    int queries, first, heads, head;
    int causal; // ≠ 0: a query sees no later key
    float scale;
};
