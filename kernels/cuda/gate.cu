// out[row][i] = act(x[row][i]) * x[row][width + i]
//
// One thread for 8 elements of out. Moves 6 bytes an element of out.
#include "element.cuh"

namespace {

template <bool GELU>
__device__ void gate(const element* x, element* out, int width, int row_blocks) {
    let_next_start();
    size_t row = blockIdx.x / row_blocks;
    int i = (blockIdx.x % row_blocks * blockDim.x + threadIdx.x) * 8;
    wait_for_previous();
    if (i >= width) return;
    const element* from = x + row * 2 * width + i;
    float gate[8], up[8];
    unpack(load8(from), gate);
    unpack(load8(from + width), up);
#pragma unroll
    for (int j = 0; j < 8; j++) gate[j] = (GELU ? gelu_tanh(gate[j]) : silu(gate[j])) * up[j];
    store8(out + row * width + i, pack(gate));
}

}  // namespace

extern "C" __global__ void gate_silu(const element* x, element* out, int width, int row_blocks) {
    gate<false>(x, out, width, row_blocks);
}

extern "C" __global__ void gate_gelu(const element* x, element* out, int width, int row_blocks) {
    gate<true>(x, out, width, row_blocks);
}
