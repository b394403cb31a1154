// Hopper's matrix products of e4m3. Tiles in shared memory are panels of 128 a row:
// the same 128 bytes as of elements, swizzled alike.
#pragma once

#include "attention_hopper.cuh"

namespace attention {

using e4m3 = unsigned char;

// sums[64 x N] (+)= a[64 x 32] * b[32 x N], as `product` does with elements. FIRST, SECOND and
// ADD are the numbers of the operands behind the sums.
#define BATON_PRODUCT_E4M3(SUMS, N, NAMES, FIRST, SECOND, ADD, ...)                                          \
    __device__ __forceinline__ void product_e4m3(float (&sums)[SUMS], uint64_t a, uint64_t b, bool add) {    \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" ADD ", 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n" N "k32.f32.e4m3.e4m3 {" NAMES "}, "                 \
                     "%" FIRST ", %" SECOND ", add, 1, 1;\n}"                                                \
                     : __VA_ARGS__                                                                           \
                     : "l"(a), "l"(b), "r"((int)add));                                                       \
    }

#define BATON_NAMES_4 "%0, %1, %2, %3"
#define BATON_NAMES_8 BATON_NAMES_4 ", %4, %5, %6, %7"
#define BATON_NAMES_16 BATON_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"

BATON_PRODUCT_E4M3(4, "8", BATON_NAMES_4, "4", "5", "6", BATON_SUMS_4(sums, 0))
BATON_PRODUCT_E4M3(8, "16", BATON_NAMES_8, "8", "9", "10", BATON_SUMS_8(sums, 0))
BATON_PRODUCT_E4M3(16, "32", BATON_NAMES_16, "16", "17", "18", BATON_SUMS_8(sums, 0), BATON_SUMS_8(sums, 8))
BATON_PRODUCT_E4M3(32, "64", BATON_NAMES_32, "32", "33", "34", BATON_SUMS_32(sums, 0))
BATON_PRODUCT_E4M3(64, "128", BATON_NAMES_64, "64", "65", "66", BATON_SUMS_32(sums, 0), BATON_SUMS_32(sums, 32))

} // namespace attention
