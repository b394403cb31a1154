// Numbers of eight bits that share a scale: rounding to e4m3, and back. The scale is the
// greatest of them over 448, the greatest e4m3; an element stands for itself times the scale.
#pragma once

#include "element.cuh"

#include <cuda_fp8.h>

struct Rounding {
    float scale, inverse;

    // Numbers below the least are zeros: their inverse scale would not be a number.
    __device__ __forceinline__ explicit Rounding(float greatest) {
        const bool some = greatest >= 1e-30f;
        scale = some ? greatest / 448.0f : 0.0f;
        inverse = some ? 448.0f / greatest : 0.0f;
    }

    __device__ __forceinline__ uint32_t four(const float* x) const {
        return __nv_fp8x4_e4m3(make_float4(x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse)).__x;
    }

    __device__ __forceinline__ uint2 eight(const float (&x)[8]) const { return make_uint2(four(x), four(x + 4)); }
};

// Two e4m3, the low bytes of `pair`, without their scale, in fp16. That is exact.
__device__ __forceinline__ __half2 of_e4m3(uint32_t pair) {
    return __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)pair, __NV_E4M3);
}

// Eight e4m3 times their scale.
__device__ __forceinline__ element8 dequantised(uint2 packed, float scale) {
    element8 out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = __half22float2(of_e4m3((i < 2 ? packed.x : packed.y) >> i % 2 * 16));
        out.pair[i] = to_elements(two.x * scale, two.y * scale);
    }
    return out;
}
