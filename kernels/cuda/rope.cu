// Rotary embedding of queries and keys, and the write of keys and values into
// pages, from the rows that the QKV product made: [row][heads + 2 kv_heads][head_dim].
//
// One block a row. Cosines and sines are computed once for the row, in shared
// memory; then each thread takes 8 elements of a head together with the 8 they
// turn with. Queries turn in place; keys and values go to the pages and are
// left as they were in the row. Moves 2 bytes an element in, 2 out.
//
// A page holds [layer][token][K|V][kv_head][head_dim]; `slots[row]` is
// page * page_tokens + token, or negative for a row that has no place (padding).
#include "element.cuh"

extern "C" __global__ void __launch_bounds__(256)
    rope_write(element* qkv, const int* positions, const float* frequencies, float magnitude,
               const int* slots, element* pages, int pool_tokens, int page_tokens, int layers, int layer,
               int heads, int kv_heads, int head_dim, int turning) {
    extern __shared__ float cosines[];
    int half = turning / 2;
    float* sines = cosines + half;
    let_next_start();
    float mine = threadIdx.x < half ? frequencies[threadIdx.x] : 0.0f;
    wait_for_previous();

    float position = positions[blockIdx.x];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float sine, cosine;
        // The angle is rounded to f32, as in the models' reference implementation.
        sincosf(__fmul_rn(position, i == threadIdx.x ? mine : frequencies[i]), &sine, &cosine);
        cosines[i] = cosine * magnitude;
        sines[i] = sine * magnitude;
    }
    __syncthreads();

    size_t row_elements = 2 * (size_t)kv_heads * head_dim;
    int slot = slots[blockIdx.x];
    bool is_placed = slot >= 0 && slot < pool_tokens;
    element* to = nullptr;
    if (is_placed) {
        size_t page = slot / page_tokens, token = slot % page_tokens;
        to = pages + ((page * layers + layer) * page_tokens + token) * row_elements;
    }
    element* row = qkv + (size_t)blockIdx.x * (heads + 2 * kv_heads) * head_dim;

    // A head of q or k is half / 8 pairs of vectors, then what does not turn.
    int pairs = half / 8;
    int rest = (head_dim - turning) / 8;
    int items = pairs + rest;
    for (int item = threadIdx.x; item < (heads + kv_heads) * items; item += blockDim.x) {
        int head = item / items, part = item % items;
        bool is_key = head >= heads;
        if (is_key && !is_placed) continue;
        element* from = row + head * head_dim;
        element* into = is_key ? to + (head - heads) * head_dim : from;
        if (part >= pairs) {
            if (is_key) {
                int at = turning + (part - pairs) * 8;
                store8(into + at, load8(from + at));
            }
            continue;
        }
        int low = part * 8, high = low + half;
        float a[8], b[8], turned_a[8], turned_b[8];
        unpack(load8(from + low), a);
        unpack(load8(from + high), b);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float cosine = cosines[low + j], sine = sines[low + j];
            turned_a[j] = a[j] * cosine - b[j] * sine;
            turned_b[j] = b[j] * cosine + a[j] * sine;
        }
        store8(into + low, pack(turned_a));
        store8(into + high, pack(turned_b));
    }
    if (is_placed) {
        const element* values = row + (heads + kv_heads) * head_dim;
        element* into = to + kv_heads * head_dim;
        for (int i = threadIdx.x * 8; i < kv_heads * head_dim; i += blockDim.x * 8) {
            store8(into + i, load8(values + i));
        }
    }
}
