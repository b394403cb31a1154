// A warp's tile of 16 cached tokens of one key/value head, in either form of the cache: how it
// gets into shared memory, and how it comes out as operands of m16n8k16 products.
//
//   Tile<D, false>  elements
//   Tile<D, true>   e4m3, which become fp16 in registers, without their scales: that is exact,
//                   and one instruction for two. A key's scale is multiplied to its score,
//                   a value's to its weight: one number for each token, not for each element.
//
// Then what is multiplied with them is fp16 too, in either dtype. Queries and weights are
// counted in units, powers of two just above the greatest of them, so that they have the room: a
// query by its greatest element, weights by the greatest scale of a value so far.
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

    // Queries stay as they are.
    __device__ static __forceinline__ float prepare(uint32_t (&)[D / 16][2]) { return 1.0f; }

    __device__ __forceinline__ float key_scale(int) const { return 1.0f; }
    __device__ __forceinline__ float value_scale(int) const { return 1.0f; }
    __device__ __forceinline__ float unit_after(float unit) const { return unit; }

    __device__ static __forceinline__ uint32_t pack_operand(float low, float high) { return pack(low, high); }

    __device__ static __forceinline__ void product(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        multiply(sum, a, b[0], b[1]);
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

// The power of two above `greatest`, at least the least of them; and one over it.
__device__ __forceinline__ float unit_of(float greatest) {
    return __int_as_float((__float_as_int(greatest) & 0x7f800000) + 0x00800000);
}

__device__ __forceinline__ float inverse_of(float unit) { return __int_as_float(0x7f000000 - __float_as_int(unit)); }

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
        for (int i = 0; i < 4; i++) to[i] = bits(of_e4m3(bytes[i % 2] >> i / 2 * 16));
    }

    // A thread gets two bytes of each of two tokens: neighbours, in two rows of an operand.
    __device__ __forceinline__ void value_fragments(uint32_t (&to)[4], int k) const {
        uint32_t bytes[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(bytes[0]), "=r"(bytes[1])
                     : "r"(shared_address(values + at(threadIdx.x % 16, k))) : "memory");
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = bits(of_e4m3(__byte_perm(bytes[i / 2], 0, i % 2 == 0 ? 0x4420 : 0x4431)));
    }

    __device__ static __forceinline__ int query_at(int k, int half) {
        return k * 16 + threadIdx.x % 4 * 4 + half * 2;
    }

    __device__ static __forceinline__ int row(int k, int half) { return k * 16 + threadIdx.x % 32 / 4 * 2 + half; }

    // A head's query, of which four lanes have a part each, becomes fp16 in the unit that is returned.
    __device__ static __forceinline__ float prepare(uint32_t (&query)[D / 16][2]) {
        float greatest = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const float2 two = elements(query[i / 2][i % 2]);
            greatest = fmaxf(greatest, fmaxf(fabsf(two.x), fabsf(two.y)));
        }
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
        const float unit = unit_of(greatest), inverse = inverse_of(unit);
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const float2 two = elements(query[i / 2][i % 2]);
            query[i / 2][i % 2] = pack_operand(two.x * inverse, two.y * inverse);
        }
        return unit;
    }

    __device__ __forceinline__ float key_scale(int token) const { return scales[0][token]; }
    __device__ __forceinline__ float value_scale(int token) const { return scales[1][token]; }

    // The unit of weights once this tile's are among them.
    __device__ __forceinline__ float unit_after(float unit) const {
        const int token = threadIdx.x % 32 / 4;
        float greatest = fmaxf(scales[1][token], scales[1][token + 8]);
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 4));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 8));
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 16));
        return fmaxf(unit, unit_of(greatest));
    }

    __device__ static __forceinline__ uint32_t pack_operand(float low, float high) {
        return bits(__floats2half2_rn(low, high));
    }

    __device__ static __forceinline__ void product(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }

    __device__ static __forceinline__ uint32_t bits(__half2 two) { return *reinterpret_cast<uint32_t*>(&two); }

    __device__ static __forceinline__ float2 elements(uint32_t two) {
        return to_floats(*reinterpret_cast<element2*>(&two));
    }
};

} // namespace attention
