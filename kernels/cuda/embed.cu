// out[row] = table[token] * scale, the token being tokens[row] or, when that is
// negative, drawn[-1 - tokens[row]]: what an earlier step on the card chose.
//
// One block a row, 16 bytes a thread and turn. Moves rows * hidden * 4 bytes.
#include "element.cuh"

extern "C" __global__ void embed(const element* table, const int* tokens, const int* drawn, int drawn_tokens,
                                 element* out, int hidden, int vocab, float scale) {
    let_next_start();
    wait_for_previous();
    // A token that is none reads row 0: the host checks those it knows.
    int token = tokens[blockIdx.x];
    if (token < 0 && ~token < drawn_tokens) token = drawn[~token];
    if (token < 0 || token >= vocab) token = 0;
    const element* from = table + (size_t)token * hidden;
    element* to = out + (size_t)blockIdx.x * hidden;
    for (int i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
        element8 row = load8(from + i);
        if (scale != 1.0f) {
            float x[8];
            unpack(row, x);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] *= scale;
            row = pack(x);
        }
        store8(to + i, row);
    }
}
