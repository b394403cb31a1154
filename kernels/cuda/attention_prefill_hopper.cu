// Attention of many new tokens per sequence over pages, for Hopper (sm_90a).
//
// A CTA takes 128 rows of one query head after another, longest first. One warp keeps the copy engine busy with
// tiles of 128 keys and values, two stages deep; two warpgroups of 64 rows each
// compute. A warpgroup has the scores of the next tile and the weighted values of the
// last one in the tensor cores while it does the softmax between them, and the two
// take turns at starting products, so that one's softmax hides behind the other's
// products. (The scheme of FlashAttention-3, written for pages and ascending keys.)
// In fp8 four warps take the copying warp's place: they load tiles, make them elements and store
// them as the copy engine would have.
// Memory traffic: queries and output once, keys and values once for each row tile and
// query head, mostly from L2 since the heads of a tile are neighbours in the grid.

#include "attention_dequantise.cuh"
#include "attention_hopper.cuh"
#include "attention_prefill.cuh"

using namespace attention;

namespace {

constexpr int GROUPS = 2;  // warpgroups that compute
constexpr int GROUP = 128; // threads of one

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int KEYS = 128;
constexpr int STAGES = 2;
constexpr int GROUP_ROWS = 64;
constexpr int PANEL = 64;     // elements of a swizzled row

// Named barriers: 0 is __syncthreads.
constexpr int OWN_BARRIER = 1, TURN_BARRIER = 3, ALL_BARRIER = 5;

template <int D>
struct alignas(1024) Shared {
    element query[GROUPS][D / PANEL][GROUP_ROWS * PANEL], out[GROUPS][D / PANEL][GROUP_ROWS * PANEL];
    element keys[STAGES][D / PANEL][KEYS * PANEL];
    element values[STAGES][D / PANEL][KEYS * PANEL];
    Barrier keys_full[STAGES], keys_free[STAGES], values_full[STAGES], values_free[STAGES];
};

__device__ __forceinline__ int swizzled_in_panel(int row, int chunk) { return row * PANEL + ((chunk ^ (row % 8)) << 3); }

// The tiles of rows and heads that a CTA takes: one in each round of the grid, which
// goes back and forth since the longest come first.
struct Item {
    int round = 0, head, kv_head, begin;
    RowTile tile = {0, 0, 0, 0};

    __device__ __forceinline__ bool next(const PrefillAttention& p) {
        do {
            const int cta = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
            const int at = round++ * gridDim.x + cta;
            if (at >= p.tile_count * p.heads) return false;
            tile = RowTile(p, __ldg(p.tiles + at / p.heads));
            head = at % p.heads;
        } while (tile.rows == 0);
        kv_head = head / (p.heads / p.kv_heads);
        begin = tile.first_tile<KEYS>(p.window) * KEYS;
        return true;
    }
};

// What fills the ring: the copying warp's one thread, or in fp8 a warpgroup.
template <int D, bool FP8>
struct Feeder {
    const TensorMap& map;
    const PrefillAttention& p;
    Shared<D>& shared;
    Stage<STAGES> keys, values;

    // A tile of keys (`part` 0) or values (`part` 1).
    __device__ __forceinline__ void load(const Item& item, element (*to)[KEYS * PANEL], Barrier& full, int part,
                                         int first) const {
        const int head = part * p.kv_heads + item.kv_head;
        if constexpr (FP8) dequantise(item.tile, to, full, head, first);
        else copy(item.tile, to, full, head, first);
    }

    // What lies past the last page is zeros.
    __device__ __forceinline__ void copy(const RowTile& tile, element (*to)[KEYS * PANEL], Barrier& full, int head,
                                         int first) const {
        const int* table = p.page_table + (long long)tile.sequence * p.max_pages;
        full.arrive_and_expect(KEYS * D * (int)sizeof(element));
        for (int token = 0; token < KEYS; token += p.box) {
            const int position = first + token, page = position / p.page_tokens;
            const int w = position < tile.end() ? __ldg(table + page) * p.layers + p.layer : 0x7fffffff;
#pragma unroll
            for (int panel = 0; panel < D / PANEL; panel++)
                load_box(map, to[panel] + token * PANEL, full, panel * PANEL, head, position - page * p.page_tokens, w);
        }
    }

    __device__ __forceinline__ void dequantise(const RowTile& tile, element (*to)[KEYS * PANEL], Barrier& full, int head,
                                               int first) const {
        const auto place = [to](int token, int chunk) { return to[chunk / 8] + swizzled_in_panel(token, chunk % 8); };
        dequantise_tile<D, KEYS, GROUP>(pages_of<D, true>(p, tile), p.kv_heads, head, first, tile.end(),
                                        threadIdx.x % GROUP, place);
        publish_to_async_units();
        full.arrive();
    }

    __device__ __forceinline__ void load_keys(const Item& item, int first) {
        shared.keys_free[keys.index].wait(keys.parity ^ 1);
        load(item, shared.keys[keys.index], shared.keys_full[keys.index], 0, first);
        keys.next();
    }

    __device__ __forceinline__ void load_values(const Item& item, int first) {
        shared.values_free[values.index].wait(values.parity ^ 1);
        load(item, shared.values[values.index], shared.values_full[values.index], 1, first);
        values.next();
    }

    // Keys go one tile ahead of values, as they are used.
    __device__ __forceinline__ void run() {
        for (Item item; item.next(p);) {
            load_keys(item, item.begin);
            for (int key = item.begin; key < item.tile.end(); key += KEYS) {
                if (key + KEYS < item.tile.end()) load_keys(item, key + KEYS);
                load_values(item, key);
            }
        }
    }
};

// A warpgroup's 64 rows.
template <int D, bool FP8, bool CAPPED>
struct Rows {
    const PrefillAttention& p;
    Shared<D>& shared;
    int group, thread;                 // of the warpgroups that compute; of the warpgroup
    float scale;                       // of dots, to exponents of two
    int position;                      // of the warpgroup's first row
    float scores[KEYS / 2], out[D / 2];
    uint32_t weights[KEYS / 16][4];
    float maximum[2], sum[2];
    Stage<STAGES> keys, values;

    // Enqueues the queries of the next item, once nothing reads the last one's.
    __device__ __forceinline__ void copy_queries(const Item& item) {
        for (int at = thread; at < GROUP_ROWS * (D / 8); at += GROUP) {
            const int row = at / (D / 8), chunk = at % (D / 8), in_tile = group * GROUP_ROWS + row;
            const bool there = in_tile < item.tile.rows;
            const element* q = p.q + (long long)(item.tile.row + (there ? in_tile : 0)) * p.q_stride;
            copy_or_zero(shared.query[group][chunk / 8] + swizzled_in_panel(row, chunk % 8),
                         q + item.head * D + chunk * 8, there);
        }
        commit_copies();
    }

    __device__ __forceinline__ void begin(const Item& item) {
        position = item.tile.position + group * GROUP_ROWS;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        maximum[0] = maximum[1] = -INFINITY, sum[0] = sum[1] = 0.0f;
        wait_copies<0>();
        publish_to_async_units();
        named_sync(OWN_BARRIER + group, GROUP);
    }

    __device__ __forceinline__ void start_scores() {
        const uint64_t q = descriptor(shared.query[group][0], 16), k = descriptor(shared.keys[keys.index][0], 16);
        begin_products();
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            const int panel = i / 4, bytes = i % 4 * 32;
            product(scores, q + further(panel * GROUP_ROWS * PANEL * 2 + bytes),
                    k + further(panel * KEYS * PANEL * 2 + bytes), i > 0);
        }
        commit_products();
    }

    __device__ __forceinline__ void start_values() {
        const uint64_t v = descriptor(shared.values[values.index][0], KEYS * PANEL * 2);
        begin_products();
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) product(out, weights[i], v + further(i * 16 * PANEL * 2));
        commit_products();
    }

    __device__ __forceinline__ void wait_keys() { shared.keys_full[keys.index].wait(keys.parity); }
    __device__ __forceinline__ void wait_values() { shared.values_full[values.index].wait(values.parity); }

    __device__ __forceinline__ void free_keys() {
        if (thread % 32 == 0) shared.keys_free[keys.index].arrive();
        keys.next();
    }

    __device__ __forceinline__ void free_values() {
        if (thread % 32 == 0) shared.values_free[values.index].arrive();
        values.next();
    }

    // Scores of keys from `key` on become weights; what earlier tiles gave is to be
    // multiplied by `rescale`.
    __device__ __forceinline__ void soften(int key, float (&rescale)[2]) {
        const bool all =
            key + KEYS - 1 <= position && (p.window == 0 || key > position + GROUP_ROWS - 1 - p.window);
        if (CAPPED) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) scores[i] = p.cap * tanhf(scores[i] * (p.scale / p.cap));
        }
        if (!all) mask(key);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float greatest = maximum[h];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                greatest = fmaxf(greatest, fmaxf(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]));
            greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
            greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
            const float base = greatest == -INFINITY ? 0.0f : greatest;
            // Exactly 1 where the maximum stays, so that tiles without weight change nothing.
            rescale[h] = exp2_fast((maximum[h] - base) * scale);
            maximum[h] = greatest;
            float total = sum[h] * rescale[h];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 4 * n + 2 * h; i < 4 * n + 2 * h + 2; i++) {
                    scores[i] = exp2_fast(fmaf(scores[i], scale, -base * scale));
                    total += scores[i];
                }
            }
            sum[h] = total;
        }
    }

    __device__ __forceinline__ void mask(int key) {
        const int row = position + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            const int column = key + i / 4 * 8 + thread % 4 * 2 + i % 2;
            if (!sees(row + i / 2 % 2 * 8, column, p.window)) scores[i] = -INFINITY;
        }
    }

    __device__ __forceinline__ void take_weights() {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                weights[k][i] = pack(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
        }
    }

    // Values past the last key are whatever a page held before: not even numbers, perhaps. In fp8
    // they are zeros already.
    __device__ __forceinline__ void clear_values(int from) {
        const uint4 zero = make_uint4(0, 0, 0, 0);
        for (int at = group * GROUP + thread; at < (KEYS - from) * (D / 8); at += GROUPS * GROUP) {
            const int row = from + at / (D / 8), chunk = at % (D / 8);
            *reinterpret_cast<uint4*>(shared.values[values.index][chunk / 8] + row * PANEL + chunk % 8 * 8) = zero;
        }
        publish_to_async_units();
        named_sync(ALL_BARRIER, GROUPS * GROUP);
    }

    // One item; then it is the next, whose queries are on their way, if there is one.
    __device__ __forceinline__ bool run(Item& item) {
        const int end = item.tile.end();
        float rescale[2];
        begin(item);
        wait_keys();
        hold(scores);
        start_scores();
        wait_products<0>();
        hold(scores);
        free_keys();
        soften(item.begin, rescale);
        take_weights();
        int key = item.begin + KEYS;
        for (; key < end; key += KEYS) {
            wait_keys();
            named_sync(TURN_BARRIER + group, GROUPS * GROUP);
            hold(scores);
            start_scores();
            wait_values();
            hold(out);
            start_values();
            named_arrive(TURN_BARRIER + 1 - group, GROUPS * GROUP);
            wait_products<1>();
            hold(scores);
            free_keys();
            soften(key, rescale);
            wait_products<0>();
            hold(out);
            free_values();
#pragma unroll
            for (int i = 0; i < D / 2; i++) out[i] *= rescale[i / 2 % 2];
            take_weights();
        }
        wait_values();
        if (!FP8 && end < key) clear_values(end - (key - KEYS));
        hold(out);
        start_values();
        const RowTile tile = item.tile;
        const int head = item.head;
        named_sync(OWN_BARRIER + group, GROUP);
        const bool more = item.next(p);
        if (more) copy_queries(item);
        wait_products<0>();
        hold(out);
        free_values();
        write(tile, head);
        return more;
    }

    __device__ __forceinline__ void run() {
        // The first turn is the first warpgroup's.
        if (group == 1) named_arrive(TURN_BARRIER, GROUPS * GROUP);
        Item item;
        bool more = item.next(p);
        if (more) copy_queries(item);
        while (more) more = run(item);
    }

    // Through shared memory, so that whole rows are written.
    __device__ __forceinline__ void write(const RowTile& tile, int head) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float inverse = 1.0f / total;
            const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * h;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *reinterpret_cast<uint32_t*>(shared.out[group][n / 8] + swizzled_in_panel(row, n % 8) +
                                             thread % 4 * 2) =
                    pack(out[4 * n + 2 * h] * inverse, out[4 * n + 2 * h + 1] * inverse);
        }
        named_sync(OWN_BARRIER + group, GROUP);
        for (int at = thread; at < GROUP_ROWS * (D / 8); at += GROUP) {
            const int row = at / (D / 8), chunk = at % (D / 8), in_tile = group * GROUP_ROWS + row;
            if (in_tile >= tile.rows) break;
            *reinterpret_cast<uint4*>(p.out + (long long)(tile.row + in_tile) * p.out_stride + head * D +
                                      chunk * 8) =
                *reinterpret_cast<const uint4*>(shared.out[group][chunk / 8] + swizzled_in_panel(row, chunk % 8));
        }
    }
};

template <int D, bool FP8, bool CAPPED>
__device__ __forceinline__ void prefill(const TensorMap& map, const PrefillAttention& p) {
    constexpr int FEEDERS = FP8 ? GROUP : 1;
    extern __shared__ unsigned char memory[];
    const uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
    auto& shared = *reinterpret_cast<Shared<D>*>(memory + (aligned - shared_address(memory)));
    const int group = threadIdx.x / GROUP;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            shared.keys_full[stage].init(FEEDERS), shared.values_full[stage].init(FEEDERS);
            shared.keys_free[stage].init(GROUPS * 4), shared.values_free[stage].init(GROUPS * 4);
        }
        publish_to_async_units();
    }
    __syncthreads();
    let_next_start();
    wait_for_previous();
    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FP8 ? 104 : 40));
        if (threadIdx.x < GROUPS * GROUP + FEEDERS) Feeder<D, FP8>{map, p, shared, {}, {}}.run();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(FP8 ? 200 : 232));
        const float scale = CAPPED ? LOG2_E : p.scale * LOG2_E;
        Rows<D, FP8, CAPPED>{p, shared, group, (int)threadIdx.x % GROUP, scale}.run();
    }
}

#else

template <int D, bool FP8, bool CAPPED>
__device__ void prefill(const TensorMap&, const PrefillAttention&) {} // never launched

#endif

} // namespace

#define INSTANCE(NAME, D, FP8, CAPPED)                                                                       \
    extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP, 1)                                    \
    attention_prefill_hopper##NAME(const __grid_constant__ TensorMap map,                                    \
                                   const __grid_constant__ PrefillAttention p) {                             \
        prefill<D, FP8, CAPPED>(map, p);                                                                     \
    }

INSTANCE(_d64, 64, false, false)
INSTANCE(_d64_capped, 64, false, true)
INSTANCE(_d128, 128, false, false)
INSTANCE(_d128_capped, 128, false, true)
INSTANCE(_fp8_d64, 64, true, false)
INSTANCE(_fp8_d64_capped, 64, true, true)
INSTANCE(_fp8_d128, 128, true, false)
INSTANCE(_fp8_d128_capped, 128, true, true)
