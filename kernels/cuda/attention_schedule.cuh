// How the attention of single tokens is cut into shares: what the kernel that plans a
// step (`attention_schedule.cu`) and the one that attends (`attention_decode.cu`) agree on.
//
// A schedule is a `Plan`, then for each CTA [sequence, kv head, unit, units, kv_len, units of
// the sequences before].
#pragma once

#include "common.cuh"

namespace attention {

constexpr int LEAST_UNIT = 64; // tokens: a tile for each warp of a CTA
constexpr int START_INTS = 8;  // ints per CTA, and of the head

// A length that the page table has room for.
__device__ __forceinline__ int usable(int kv_len, int most) { return min(max(kv_len, 0), most); }

// Units of a sequence: at absolute positions, those that the window touches.
struct Units {
    int first, count;

    __device__ Units(int kv_len, int unit, int window) {
        first = window > 0 ? max(0, kv_len - window) / unit : 0;
        count = (kv_len + unit - 1) / unit - first;
    }
};

// The head of a schedule: `total` units of `unit` tokens over `ctas` CTAs. If `apart`, each
// unit is a piece of its own with a slot for itself.
struct Plan {
    int total, ctas, unit, apart;

    __device__ __forceinline__ explicit Plan(const int* schedule) {
        const int4 head = __ldg(reinterpret_cast<const int4*>(schedule));
        total = head.x, ctas = head.y, unit = head.z, apart = head.w;
    }
};

// Shares of `total` units over `ctas`: the first unit of one, and whose one is.
__device__ __forceinline__ int share_begin(int cta, int total, int ctas) {
    return (int)((long long)cta * total / ctas);
}

__device__ __forceinline__ int share_owner(int unit, int total, int ctas) {
    return (int)(((long long)(unit + 1) * ctas - 1) / total);
}

} // namespace attention
