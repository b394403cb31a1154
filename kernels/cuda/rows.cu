// Rows of matrices.
//
//   gather_rows  out[i] = x[which[i]], 16 bytes a thread and turn
//   add_bias     x[row] += bias
//   softcap      x = cap * tanh(x / cap), on f32
#include "element.cuh"

extern "C" __global__ void gather_rows(const element* x, const int* which, element* out, int width,
                                       int rows) {
    let_next_start();
    wait_for_previous();
    int row = which[blockIdx.x];
    // A row that is none reads row 0: the host checks those it knows.
    if (row < 0 || row >= rows) row = 0;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        store8(out + (size_t)blockIdx.x * width + i, load8(x + (size_t)row * width + i));
    }
}

extern "C" __global__ void add_bias(element* x, const element* bias, int width) {
    let_next_start();
    wait_for_previous();
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        element* at = x + (size_t)blockIdx.x * width + i;
        float sum[8], more[8];
        unpack(load8(at), sum);
        unpack(load8(bias + i), more);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += more[j];
        store8(at, pack(sum));
    }
}

extern "C" __global__ void softcap(float* x, float cap, unsigned long long elements) {
    let_next_start();
    wait_for_previous();
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < elements) x[i] = cap * tanhf(x[i] / cap);
}
