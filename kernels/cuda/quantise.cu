// Rows of elements as e4m3 with a scale each: out[row][i] = x[row][i] / scale[row], to the nearest
// e4m3, scale[row] = greatest |x[row][i]| / 448, the greatest e4m3.
//
//   quantise_rows  of x: weights once, activations before a product
//   quantise_norm  of norm(x), rounded to elements as norm.cu does
//
// One block a row; the row stays in registers, so memory is read once: 3 bytes an element.
#include "e4m3.cuh"

namespace {

// Vectors of 8 elements a thread can hold.
constexpr int MOST = 4;

__device__ __forceinline__ float block_max(float value, float* shared) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; warp++) value = fmaxf(value, shared[warp]);
    return value;
}

template <bool NORM>
__device__ void quantise(const element* x, const element* weight, uint8_t* out, float* scales, int width,
                         float eps) {
    __shared__ float sums[32], greatests[32];
    let_next_start();
    const size_t row = (size_t)blockIdx.x * width;
    wait_for_previous();

    float held[MOST][8];
    float squares = 0.0f;
#pragma unroll
    for (int turn = 0; turn < MOST; turn++) {
        const int i = (turn * blockDim.x + threadIdx.x) * 8;
        if (i >= width) break;
        unpack(load8(x + row + i), held[turn]);
#pragma unroll
        for (int j = 0; j < 8; j++) squares += held[turn][j] * held[turn][j];
    }
    const float factor = NORM ? rsqrtf(block_sum(squares, sums) / width + eps) : 1.0f;
    float greatest = 0.0f;
#pragma unroll
    for (int turn = 0; turn < MOST; turn++) {
        const int i = (turn * blockDim.x + threadIdx.x) * 8;
        if (i >= width) break;
        float(&mine)[8] = held[turn];
        if (NORM) {
            float gain[8];
            unpack(load8(weight + i), gain);
#pragma unroll
            for (int j = 0; j < 8; j++) mine[j] *= factor * gain[j];
            unpack(pack(mine), mine);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) greatest = fmaxf(greatest, fabsf(mine[j]));
    }
    greatest = block_max(greatest, greatests);
    const Rounding rounding(greatest);
    if (threadIdx.x == 0) scales[blockIdx.x] = rounding.scale;
#pragma unroll
    for (int turn = 0; turn < MOST; turn++) {
        const int i = (turn * blockDim.x + threadIdx.x) * 8;
        if (i >= width) break;
        *reinterpret_cast<uint2*>(out + row + i) = rounding.eight(held[turn]);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    quantise_rows(const element* x, uint8_t* out, float* scales, int width) {
    quantise<false>(x, nullptr, out, scales, width, 0.0f);
}

extern "C" __global__ void __launch_bounds__(1024)
    quantise_norm(const element* x, const element* weight, uint8_t* out, float* scales, int width,
                  float eps) {
    quantise<true>(x, weight, out, scales, width, eps);
}
