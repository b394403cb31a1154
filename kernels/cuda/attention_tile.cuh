// What the attention kernels share: 16-byte asynchronous copies into swizzled
// shared memory, 8x8 fragments out of it, and m16n8k16 products with
// f32 sums. Everything here runs on sm_80 and later.
#pragma once

#include "element.cuh"

namespace attention {

constexpr float LOG2_E = 1.4426950408889634f;

// Rows of shared tiles are whole 128-byte lines, so that the swizzle below
// stays inside a row.
template <int D>
constexpr int PITCH = (D + 63) / 64 * 64;

// Offset in elements of a 16-byte chunk of a row. Neighbouring rows put the
// same chunk in different banks: eight rows of one chunk are read without
// conflict.
template <int D>
__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * PITCH<D> + ((chunk ^ (row & 7)) << 3);
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes, or writes 16 zero bytes where there is nothing to read.
__device__ __forceinline__ void copy_or_zero(element* to, const element* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING groups of copies of this thread are under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void load_fragments(uint32_t (&to)[4], const element* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void load_fragments_transposed(uint32_t (&to)[4], const element* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ uint32_t transposed(uint32_t fragment) {
    uint32_t result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(fragment));
    return result;
}

// sum[16 x 8] += a[16 x 16] * b[16 x 8]
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ELEMENT "." ELEMENT ".f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn." ELEMENT "x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// A dot product as an exponent of two: `scale` and the optional cap applied.
__device__ __forceinline__ float exponent(float dot, float scale, float cap) {
    const float score = dot * scale;
    return LOG2_E * (cap > 0.0f ? cap * tanhf(score / cap) : score);
}

// Size of a token's row, in words of sixteen bits: `[K|V][kv_head][D]` elements, or as many e4m3
// and then their scales, `[K|V][kv_head]` in f32.
template <int D, bool FP8>
__device__ __forceinline__ int row_words(int kv_heads) {
    return FP8 ? kv_heads * (D + 4) : 2 * kv_heads * D;
}

// Where the rows of one sequence and layer lie: `[page][layer][token][row]`. Sizes are in words of
// sixteen bits.
struct Pages {
    const element* layer;  // the pool's first row of this layer
    const int* table;      // the sequence's pages
    int pages;             // of the pool: a page that is none is read as page 0
    long long page_stride;
    int page_tokens;
    int row;

    // The first row of the page that is `at`-th of the sequence.
    __device__ __forceinline__ const element* start(int at) const {
        const unsigned page = __ldg(table + at);
        return layer + (page < (unsigned)pages ? page : 0) * page_stride;
    }

    __device__ __forceinline__ const element* token(int position) const {
        const int at = position / page_tokens;
        return start(at) + (long long)(position - at * page_tokens) * row;
    }
};

} // namespace attention
