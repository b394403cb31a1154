// Attention of many new tokens per sequence over pages, on the tensor cores of any
// card since sm_80. (Hopper's own way is attention_prefill_hopper.cu.)
//
// A CTA takes 128 rows of one query head. Queries stay in shared memory; tiles of
// keys and values arrive by asynchronous copies, values while scores are computed and
// the next keys while values are weighted. Every warp has its rows for itself, so
// softmax needs no exchange beyond the four lanes that share a row.
// In fp8 tiles are loaded, made elements and stored instead, which nothing hides but other CTAs.
// Memory traffic: queries and output once, keys and values once for each row tile and
// query head, mostly from L2 since the heads of a tile are neighbours in the grid.

#include "attention_dequantise.cuh"
#include "attention_prefill.cuh"

using namespace attention;

namespace {

template <int D, int KEYS>
struct Shared {
    element query[TILE_ROWS * PITCH<D>];
    element keys[KEYS * PITCH<D>];
    element values[KEYS * PITCH<D>];
};

// Enqueues the head `head` of `[K|V][kv_head]` of positions `first`.. into `to`, zeros from `end` on.
template <int D, int KEYS, int THREADS>
__device__ __forceinline__ void copy_tile(const Pages& pages, int head, int first, int end, element* to) {
    constexpr int CHUNKS = D / 8;
    int page = first / pages.page_tokens, in_page = first - page * pages.page_tokens;
    const element* block = nullptr;
#pragma unroll
    for (int b = 0; b < KEYS / BLOCK; b++) {
        const int left = end - first - b * BLOCK;
        if (in_page == pages.page_tokens) page++, in_page = 0;
        if ((b == 0 || in_page == 0) && left > 0) block = pages.start(page) + (long long)in_page * pages.row + head * D;
#pragma unroll
        for (int at = threadIdx.x; at < BLOCK * CHUNKS; at += THREADS) {
            const int token = at / CHUNKS, chunk = at % CHUNKS;
            const bool there = token < left;
            copy_or_zero(to + swizzled<D>(b * BLOCK + token, chunk),
                         (there ? block : pages.layer) + (there ? token : 0) * pages.row + chunk * 8, there);
        }
        in_page += BLOCK, block += BLOCK * pages.row;
    }
}

// As it, whatever the pages hold: a group of copies, which in fp8 is empty.
template <int D, bool FP8, int KEYS, int THREADS>
__device__ __forceinline__ void fetch_tile(const PrefillAttention& p, const Pages& pages, int head, int first, int end,
                                           element* to) {
    const auto place = [to](int token, int chunk) { return to + swizzled<D>(token, chunk); };
    if constexpr (FP8) dequantise_tile<D, KEYS, THREADS>(pages, p.kv_heads, head, first, end, threadIdx.x, place);
    else copy_tile<D, KEYS, THREADS>(pages, head, first, end, to);
    commit_copies();
}

template <int D, int THREADS>
__device__ __forceinline__ void copy_queries(const PrefillAttention& p, const RowTile& tile, int head, element* to) {
    constexpr int CHUNKS = D / 8;
    for (int at = threadIdx.x; at < TILE_ROWS * CHUNKS; at += THREADS) {
        const int row = at / CHUNKS, chunk = at % CHUNKS;
        const bool there = row < tile.rows;
        copy_or_zero(to + swizzled<D>(row, chunk),
                     p.q + (long long)(tile.row + (there ? row : 0)) * p.q_stride + head * D + chunk * 8, there);
    }
}

// 16 M rows of a warp: scores of one tile of keys, and the weighted values so far.
// A lane holds rows `16 m + lane / 4 + 8 h`, columns `8 n + lane % 4 * 2 + {0, 1}`.
template <int D, int KEYS, int M>
struct Rows {
    float out[M][D / 8][4] = {};
    float maximum[M][2], sum[M][2];
    uint32_t weights[M][KEYS / 16][4];

    __device__ __forceinline__ Rows() {
#pragma unroll
        for (int m = 0; m < M; m++) maximum[m][0] = maximum[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0.0f;
    }

    __device__ __forceinline__ void score(const element* query, const element* keys, float (&scores)[M][KEYS / 8][4]) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t rows[M][4];
#pragma unroll
            for (int m = 0; m < M; m++)
                load_fragments(rows[m], query + swizzled<D>(16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                uint32_t pair[4];
                load_fragments(pair, keys + swizzled<D>(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < M; m++) {
                    multiply(scores[m][2 * n], rows[m], pair[0], pair[1]);
                    multiply(scores[m][2 * n + 1], rows[m], pair[2], pair[3]);
                }
            }
        }
    }

    // Scores to weights; `position` is of the warp's first row, `key` of the first key.
    __device__ __forceinline__ void soften(const PrefillAttention& p, float (&scores)[M][KEYS / 8][4],
                                           int position, int key) {
        const bool all = key + KEYS - 1 <= position && (p.window == 0 || key > position + 16 * M - 1 - p.window);
        if (p.cap > 0.0f) cap(p, scores);
        if (!all) mask(p, scores, position, key);
        const float scale = LOG2_E * (p.cap > 0.0f ? 1.0f : p.scale);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float greatest = maximum[m][h];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    greatest = fmaxf(greatest, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
                greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
                greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
                const float base = greatest == -INFINITY ? 0.0f : greatest;
                // Exactly 1 where the maximum stays, so that tiles without weight change nothing.
                const float rescale = exp2_fast((maximum[m][h] - base) * scale);
                maximum[m][h] = greatest;
                float total = sum[m][h] * rescale;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
                    const float first = exp2_fast(fmaf(scores[m][n][2 * h], scale, -base * scale));
                    const float second = exp2_fast(fmaf(scores[m][n][2 * h + 1], scale, -base * scale));
                    total += first + second;
                    weights[m][n / 2][n % 2 * 2 + h] = pack(first, second);
                }
                sum[m][h] = total;
#pragma unroll
                for (int n = 0; n < D / 8; n++) out[m][n][2 * h] *= rescale, out[m][n][2 * h + 1] *= rescale;
            }
        }
    }

    __device__ __noinline__ static float capped(float score, float scale, float cap) {
        return cap * tanhf(score * scale / cap);
    }

    __device__ __forceinline__ void cap(const PrefillAttention& p, float (&scores)[M][KEYS / 8][4]) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) scores[m][n][i] = capped(scores[m][n][i], p.scale, p.cap);
    }

    __device__ __forceinline__ void mask(const PrefillAttention& p, float (&scores)[M][KEYS / 8][4], int position,
                                         int key) {
        const int lane = threadIdx.x % 32, row = position + lane / 4, column = key + lane % 4 * 2;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (!sees(row + 16 * m + i / 2 * 8, column + 8 * n + i % 2, p.window))
                        scores[m][n][i] = -INFINITY;
    }

    __device__ __forceinline__ void weigh(const element* values) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                uint32_t pair[4];
                load_fragments_transposed(pair, values + swizzled<D>(16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
                for (int m = 0; m < M; m++) {
                    multiply(out[m][2 * n], weights[m][k], pair[0], pair[1]);
                    multiply(out[m][2 * n + 1], weights[m][k], pair[2], pair[3]);
                }
            }
        }
    }

    // `first` is the warp's first row in the tile.
    __device__ __forceinline__ void write(const PrefillAttention& p, const RowTile& tile, int first, int head) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = first + 16 * m + lane / 4 + 8 * h;
                float total = sum[m][h];
                total += __shfl_xor_sync(~0u, total, 1);
                total += __shfl_xor_sync(~0u, total, 2);
                if (row >= tile.rows) continue;
                const float inverse = 1.0f / total;
                element* to = p.out + (long long)(tile.row + row) * p.out_stride + head * D + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    *reinterpret_cast<uint32_t*>(to + 8 * n) =
                        pack(out[m][n][2 * h] * inverse, out[m][n][2 * h + 1] * inverse);
            }
        }
    }
};

template <int D, bool FP8, int KEYS, int M>
__device__ __forceinline__ void prefill(const PrefillAttention& p) {
    constexpr int THREADS = TILE_ROWS / (16 * M) * 32;
    extern __shared__ __align__(128) unsigned char memory[];
    auto& shared = *reinterpret_cast<Shared<D, KEYS>*>(memory);
    let_next_start();
    wait_for_previous();
    const RowTile tile(p, __ldg(p.tiles + blockIdx.y));
    const int head = blockIdx.x, kv_head = head / (p.heads / p.kv_heads), first = threadIdx.x / 32 * 16 * M;
    const Pages pages = pages_of<D, FP8>(p, tile);
    const int begin = tile.first_tile<KEYS>(p.window) * KEYS, end = tile.end();
    const auto fetch = [&](int part, int key, element* to) {
        fetch_tile<D, FP8, KEYS, THREADS>(p, pages, part * p.kv_heads + kv_head, key, end, to);
    };
    Rows<D, KEYS, M> rows;

    copy_queries<D, THREADS>(p, tile, head, shared.query);
    fetch(0, begin, shared.keys);
    for (int key = begin; key < end; key += KEYS) {
        fetch(1, key, shared.values);
        wait_copies<1>();
        __syncthreads();
        float scores[M][KEYS / 8][4] = {};
        rows.score(shared.query + first * PITCH<D>, shared.keys, scores);
        __syncthreads();
        fetch(0, key + KEYS, shared.keys);
        rows.soften(p, scores, tile.position + first, key);
        wait_copies<1>();
        __syncthreads();
        rows.weigh(shared.values);
        __syncthreads();
    }
    wait_copies<0>();
    rows.write(p, tile, first, head);
}

} // namespace

// Head dimension, form of the cache, keys of a tile, 16-row blocks of a warp.
#define INSTANCE(NAME, D, FP8, KEYS, M)                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_ROWS / (16 * M) * 32)                                  \
    attention_prefill##NAME##_d##D(const __grid_constant__ PrefillAttention p) {                             \
        prefill<D, FP8, KEYS, M>(p);                                                                         \
    }

INSTANCE(, 64, false, 64, 2)
INSTANCE(, 96, false, 64, 2)
INSTANCE(, 128, false, 64, 2)
INSTANCE(, 256, false, 32, 1)
INSTANCE(_fp8, 64, true, 64, 2)
INSTANCE(_fp8, 96, true, 64, 2)
INSTANCE(_fp8, 128, true, 64, 2)
INSTANCE(_fp8, 256, true, 32, 1)
