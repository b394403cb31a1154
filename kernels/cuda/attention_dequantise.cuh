// A tile of cached keys or values from e4m3 pages to elements in shared memory, for prompts:
// what follows multiplies elements, whatever the cache holds. Every number is rounded once.
//
// Eight bytes become the 16 bytes of a chunk. All of a thread's loads are under way together.
#pragma once

#include "attention_tile.cuh"
#include "e4m3.cuh"

namespace attention {

constexpr int BLOCK = 16; // tokens that always lie in one page

// The head `head` of `[K|V][kv_head]` of positions `first`.. goes to `place(token, chunk)`; zeros from
// `end` on. `thread` is one of THREADS, all of which take part.
template <int D, int KEYS, int THREADS, class Place>
__device__ __forceinline__ void dequantise_tile(const Pages& pages, int kv_heads, int head, int first, int end,
                                                int thread, Place place) {
    constexpr int CHUNKS = D / 8, EACH = (BLOCK * CHUNKS + THREADS - 1) / THREADS;
    uint2 packed[KEYS / BLOCK][EACH];
    float scales[KEYS / BLOCK][EACH];
    int page = first / pages.page_tokens, in_page = first - page * pages.page_tokens;
    const unsigned char* rows = nullptr;
#pragma unroll
    for (int b = 0; b < KEYS / BLOCK; b++) {
        const int left = end - first - b * BLOCK;
        if (in_page == pages.page_tokens) page++, in_page = 0;
        if ((b == 0 || in_page == 0) && left > 0)
            rows = reinterpret_cast<const unsigned char*>(pages.start(page) + (long long)in_page * pages.row);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = i * THREADS + thread, token = at / CHUNKS, chunk = at % CHUNKS;
            packed[b][i] = make_uint2(0, 0), scales[b][i] = 0.0f;
            if (token < min(left, BLOCK)) {
                const unsigned char* row = rows + (long long)token * 2 * pages.row;
                packed[b][i] = *reinterpret_cast<const uint2*>(row + head * D + chunk * 8);
                scales[b][i] = *reinterpret_cast<const float*>(row + 2 * kv_heads * D + 4 * head);
            }
        }
        in_page += BLOCK, rows += BLOCK * 2 * pages.row;
    }
#pragma unroll
    for (int b = 0; b < KEYS / BLOCK; b++) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = i * THREADS + thread, token = at / CHUNKS, chunk = at % CHUNKS;
            if (BLOCK * CHUNKS % THREADS == 0 || token < BLOCK)
                store8(place(b * BLOCK + token, chunk), dequantised(packed[b][i], scales[b][i]));
        }
    }
}

} // namespace attention
