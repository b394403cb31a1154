// Cached keys and values of some sequences, in e4m3, as elements on pages of their own, for
// prompts: their attention reads a key once for each query head and tile of rows, and would
// make elements of it each time. Page j of sequence s goes to page s * max_pages + j.
//
// A block for 16 tokens. Every number is rounded once. Moves 1 byte an element in, 2 out.
#include "e4m3.cuh"

namespace {

constexpr int BLOCK = 16; // tokens
constexpr int AT_ONCE = 4; // loads of a thread under way

} // namespace

extern "C" __global__ void __launch_bounds__(256)
    unpack_kv(const unsigned char* layer, const int* table, const int* lengths, element* out, int max_pages,
              int pages, long long page_bytes, int page_tokens, int kv_heads, int head_dim) {
    let_next_start();
    const int blocks = page_tokens / BLOCK;
    const int at = blockIdx.x / blocks, block = blockIdx.x % blocks; // of all table entries
    wait_for_previous();
    const int left = lengths[at / max_pages] - at % max_pages * page_tokens - block * BLOCK;
    const int width = 2 * kv_heads * head_dim, chunks = width / 8, row_bytes = width + 8 * kv_heads;
    const unsigned page = table[at];
    const unsigned char* rows =
        layer + (page < (unsigned)pages ? page : 0) * page_bytes + (long long)block * BLOCK * row_bytes;
    element* to = out + ((long long)at * page_tokens + block * BLOCK) * width;
    const int items = min(left, BLOCK) * chunks;
    for (int first = threadIdx.x; first < items; first += AT_ONCE * blockDim.x) {
        uint2 packed[AT_ONCE];
        float scales[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int item = min(first + i * (int)blockDim.x, items - 1);
            const unsigned char* row = rows + (long long)(item / chunks) * row_bytes;
            packed[i] = *reinterpret_cast<const uint2*>(row + item % chunks * 8);
            scales[i] = *reinterpret_cast<const float*>(row + width + item % chunks * 8 / head_dim * 4);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int item = first + i * (int)blockDim.x;
            if (item < items) store8(to + (long long)item * 8, dequantised(packed[i], scales[i]));
        }
    }
}
