// A warp's tile of 16 cached tokens of one key/value head, in either form of the cache: how it
// gets into shared memory, and how it comes out as operands of m16n8k16 products.
//
//   Tile<D, false>  elements
//   Tile<D, true>   e4m3, which become sixteen-bit numbers in registers, without their scales:
//                   that is exact. A key's scale is multiplied to its score, a value's to
//                   its weight: one number for each token, not for each element.
//
// Which element of a head stands where in an operand does not matter as long as both operands
// agree (`query_at`), or results are written where they belong (`row`): so bytes are
// taken as they come out of 8x8 matrices of sixteen-bit pairs.
#pragma once

#include "attention_tile.cuh"
#include "e4m3.cuh"

namespace attention {

constexpr int TILE = 16; // tokens

template <int D, bool FP8>
struct Tile;

template <int D>
struct Tile<D, false> {
    element keys[TILE * PITCH<D>], values[TILE * PITCH<D>];

    // Starts to copy the tokens from `position` on, zeros from `end` on.
    __device__ __forceinline__ void copy(const Pages& pages, int kv_heads, int kv_head, int position, int end) {
        constexpr int CHUNKS = D / 8;
        const element* from = pages.token(position) + kv_head * D;
#pragma unroll
        for (int i = 0; i < TILE * CHUNKS / 32; i++) {
            const int at = i * 32 + threadIdx.x % 32, token = at / CHUNKS, chunk = at % CHUNKS;
            const bool there = position + token < end;
            const element* key = from + (there ? token : 0) * pages.row + chunk * 8;
            copy_or_zero(keys + swizzled<D>(token, chunk), key, there);
            copy_or_zero(values + swizzled<D>(token, chunk), key + kv_heads * D, there);
        }
    }

    // Elements 16 k.. of all tokens, tokens as rows.
    __device__ __forceinline__ void key_fragments(uint32_t (&to)[4], int k) const {
        const int lane = threadIdx.x % 32;
        load_fragments(to, keys + swizzled<D>(lane % 16, 2 * k + lane / 16));
    }

    // Elements 16 k.. of all tokens, tokens as columns.
    __device__ __forceinline__ void value_fragments(uint32_t (&to)[4], int k) const {
        const int lane = threadIdx.x % 32;
        load_fragments_transposed(to, values + swizzled<D>(lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
    }

    // The first of two elements of a query that stand beside those of `key_fragments`.
    __device__ static __forceinline__ int query_at(int k, int half) {
        return k * 16 + half * 8 + threadIdx.x % 4 * 2;
    }

    // The element that an operand's row `lane / 4 + 8 half` is.
    __device__ static __forceinline__ int row(int k, int half) { return k * 16 + threadIdx.x % 32 / 4 + 8 * half; }

    __device__ __forceinline__ float key_scale(int) const { return 1.0f; }
    __device__ __forceinline__ float value_scale(int) const { return 1.0f; }

    __device__ static __forceinline__ uint32_t pack_weights(float low, float high) { return pack(low, high); }

    __device__ static __forceinline__ void weigh(float (&sum)[4], const uint32_t (&values)[4], const uint32_t (&weights)[2]) {
        multiply(sum, values, weights[0], weights[1]);
    }
};

// Copies 16 bytes that need not lie at a multiple of more than 8, or writes zeros.
__device__ __forceinline__ void copy_bytes_or_zero(unsigned char* to, const unsigned char* from, bool whole, bool there) {
    if (whole) {
        copy_or_zero(reinterpret_cast<element*>(to), reinterpret_cast<const element*>(from), there);
        return;
    }
#pragma unroll
    for (int at = 0; at < 16; at += 8)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                     ::"r"(shared_address(to + at)), "l"(from + at), "r"(there ? 8 : 0) : "memory");
}

// Weights times scales need a range that fp16 lacks: they, and values with them, are bf16 in
// either dtype.
template <int D>
struct Tile<D, true> {
    static constexpr int BYTES = PITCH<D / 2> * 2; // of a row, whole lines

    alignas(128) unsigned char keys[TILE * BYTES];
    unsigned char values[TILE * BYTES];
    float scales[2][TILE]; // of keys, of values

    // Offset of 16 bytes of a row.
    __device__ static __forceinline__ int at(int token, int chunk) { return 2 * swizzled<D / 2>(token, chunk); }

    __device__ __forceinline__ void copy(const Pages& pages, int kv_heads, int kv_head, int position, int end) {
        constexpr int CHUNKS = D / 16;
        const auto* from = reinterpret_cast<const unsigned char*>(pages.token(position));
        const int lane = threadIdx.x % 32, row_bytes = 2 * pages.row;
        const bool whole = row_bytes % 16 == 0;
#pragma unroll
        for (int i = 0; i < TILE * CHUNKS / 32; i++) {
            const int token = (i * 32 + lane) / CHUNKS, chunk = (i * 32 + lane) % CHUNKS;
            const bool there = position + token < end;
            const auto* key = from + (there ? token : 0) * row_bytes + kv_head * D + chunk * 16;
            copy_bytes_or_zero(keys + at(token, chunk), key, whole, there);
            copy_bytes_or_zero(values + at(token, chunk), key + kv_heads * D, whole, there);
        }
        const int part = lane / TILE, token = lane % TILE;
        const bool there = position + token < end;
        const auto* scale = from + (there ? token : 0) * row_bytes + 2 * kv_heads * D + 4 * (part * kv_heads + kv_head);
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                     ::"r"(shared_address(&scales[part][token])), "l"(scale), "r"(there ? 4 : 0) : "memory");
    }

    // A thread gets four bytes of a token: two for either half of an operand.
    __device__ __forceinline__ void key_fragments(uint32_t (&to)[4], int k) const {
        uint32_t bytes[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(bytes[0]), "=r"(bytes[1])
                     : "r"(shared_address(keys + at(threadIdx.x % 16, k))) : "memory");
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 two = of_e4m3(bytes[i % 2] >> i / 2 * 16);
            to[i] = pack(two.x, two.y);
        }
    }

    // A thread gets two bytes of each of two tokens: neighbours, in two rows of an operand.
    __device__ __forceinline__ void value_fragments(uint32_t (&to)[4], int k) const {
        uint32_t bytes[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(bytes[0]), "=r"(bytes[1])
                     : "r"(shared_address(values + at(threadIdx.x % 16, k))) : "memory");
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 two = of_e4m3(__byte_perm(bytes[i / 2], 0, i % 2 == 0 ? 0x4420 : 0x4431));
            to[i] = pack_weights(two.x, two.y);
        }
    }

    __device__ static __forceinline__ int query_at(int k, int half) {
        return k * 16 + threadIdx.x % 4 * 4 + half * 2;
    }

    __device__ static __forceinline__ int row(int k, int half) { return k * 16 + threadIdx.x % 32 / 4 * 2 + half; }

    __device__ __forceinline__ float key_scale(int token) const { return scales[0][token]; }
    __device__ __forceinline__ float value_scale(int token) const { return scales[1][token]; }

    __device__ static __forceinline__ uint32_t pack_weights(float low, float high) {
        uint32_t packed;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }

    __device__ static __forceinline__ void weigh(float (&sum)[4], const uint32_t (&values)[4], const uint32_t (&weights)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3]), "r"(weights[0]), "r"(weights[1]));
    }
};

} // namespace attention
