// What both prefill kernels take, and how they cut the work: a tile is 128 new rows
// of one sequence and one query head, and visits keys in ascending tiles at absolute
// positions. A row's sums run over its own keys in that one order (tiles after its
// position add exact zeros), so its result has the same bits in any chunking or batch.
#pragma once

#include "attention_tile.cuh"

namespace attention {

constexpr int TILE_ROWS = 128;

struct PrefillAttention {
    const element* q;       // [row][q_stride]
    element* out;           // [row][out_stride]
    const element* pool;
    const int* page_table;  // [sequence][max_pages]
    const int4* tiles;      // [sequence, first row, rows, position of the first row]
    long long page_stride;  // from page to page, in words of sixteen bits
    long long layer_offset; // from a page's start to this layer, as well
    int tile_count;
    int layer, layers;
    int q_stride, out_stride;
    int heads, kv_heads;
    int pages, page_tokens, max_pages;
    int sequences, rows;    // of the page table, of q
    int box;                // tokens that Hopper's copy engine takes at once
    int window;             // 0: none
    float scale, cap;       // cap 0: none
};

// A tile's rows and the keys they see.
struct RowTile {
    int sequence, row, rows, position;

    __device__ __forceinline__ RowTile(int sequence, int row, int rows, int position)
        : sequence(sequence), row(row), rows(rows), position(position) {}

    // Numbers that do not fit the buffers are made to fit: what comes out is then
    // nobody's result, but nothing else is touched.
    __device__ __forceinline__ RowTile(const PrefillAttention& p, int4 tile)
        : sequence(min(max(tile.x, 0), p.sequences - 1)), row(min(max(tile.y, 0), p.rows)),
          rows(min(max(tile.z, 0), min(TILE_ROWS, p.rows - row))),
          position(min(max(tile.w, 0), p.max_pages * p.page_tokens - rows)) {}

    // One after the last key of any row.
    __device__ __forceinline__ int end() const { return position + rows; }

    // The first tile of `KEYS` keys that a row sees.
    template <int KEYS>
    __device__ __forceinline__ int first_tile(int window) const {
        return window > 0 ? max(0, position + 1 - window) / KEYS : 0;
    }
};

// Where a tile's sequence lies.
template <int D, bool FP8>
__device__ __forceinline__ Pages pages_of(const PrefillAttention& p, const RowTile& tile) {
    return {p.pool + p.layer_offset, p.page_table + (long long)tile.sequence * p.max_pages,
            p.pages, p.page_stride, p.page_tokens, row_words<D, FP8>(p.kv_heads)};
}

// Whether the row at `position` sees `key`.
__device__ __forceinline__ bool sees(int position, int key, int window) {
    return key <= position && (window == 0 || key > position - window);
}

} // namespace attention
