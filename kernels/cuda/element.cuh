// The numbers that a model computes in: bf16, or fp16 where BATON_F16 is defined. Whoever
// includes this is compiled once for each (build.rs).
#pragma once

#include "common.cuh"

#ifdef BATON_F16

#include <cuda_fp16.h>

#define ELEMENT "f16" // in names of instructions

using element = __half;
using element2 = __half2;

__device__ __forceinline__ float to_float(element x) { return __half2float(x); }
__device__ __forceinline__ float2 to_floats(element2 x) { return __half22float2(x); }
__device__ __forceinline__ element to_element(float x) { return __float2half_rn(x); }
__device__ __forceinline__ element2 to_elements(float low, float high) { return __floats2half2_rn(low, high); }

#else

#include <cuda_bf16.h>

#define ELEMENT "bf16"

using element = __nv_bfloat16;
using element2 = __nv_bfloat162;

__device__ __forceinline__ float to_float(element x) { return __bfloat162float(x); }
__device__ __forceinline__ float2 to_floats(element2 x) { return __bfloat1622float2(x); }
__device__ __forceinline__ element to_element(float x) { return __float2bfloat16(x); }
__device__ __forceinline__ element2 to_elements(float low, float high) { return __floats2bfloat162_rn(low, high); }

#endif

// Eight elements as one 16-byte access.
struct alignas(16) element8 {
    element2 pair[4];
};

__device__ __forceinline__ void unpack(const element8& packed, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = to_floats(packed.pair[i]);
        out[2 * i] = two.x;
        out[2 * i + 1] = two.y;
    }
}

__device__ __forceinline__ element8 pack(const float (&in)[8]) {
    element8 packed;
#pragma unroll
    for (int i = 0; i < 4; i++) packed.pair[i] = to_elements(in[2 * i], in[2 * i + 1]);
    return packed;
}

__device__ __forceinline__ element8 load8(const element* from) {
    return *reinterpret_cast<const element8*>(from);
}

__device__ __forceinline__ void store8(element* to, const element8& value) {
    *reinterpret_cast<element8*>(to) = value;
}
