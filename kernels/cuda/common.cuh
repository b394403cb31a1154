// What several kernels share: 16-byte accesses of bf16, and overlapping with
// the kernels before and after.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

// Eight bf16 as one 16-byte access.
struct alignas(16) bf16x8 {
    __nv_bfloat162 pair[4];
};

__device__ __forceinline__ void unpack(const bf16x8& packed, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = __bfloat1622float2(packed.pair[i]);
        out[2 * i] = two.x;
        out[2 * i + 1] = two.y;
    }
}

__device__ __forceinline__ bf16x8 pack(const float (&in)[8]) {
    bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 4; i++) packed.pair[i] = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
    return packed;
}

__device__ __forceinline__ bf16x8 load8(const __nv_bfloat16* from) {
    return *reinterpret_cast<const bf16x8*>(from);
}

__device__ __forceinline__ void store8(__nv_bfloat16* to, const bf16x8& value) {
    *reinterpret_cast<bf16x8*>(to) = value;
}

// Returns when all kernels enqueued before have ended and their writes are
// visible. Every kernel calls it before it touches what others wrote or read:
// then, in a chain of kernels that overlap, each has ended when the one after
// the next begins its own work.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start and wait for this one.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(~0u, value, distance);
    }
    return value;
}

// The sum over all threads of a block, the same bits in each. `shared` has one
// place for each warp and is free for reuse after the next __syncthreads().
__device__ __forceinline__ float block_sum(float value, float* shared) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += shared[warp];
    return sum;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

__device__ __forceinline__ float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}
