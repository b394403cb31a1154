// Attention of one new token per sequence over its pages.
//
// Memory traffic: every cached K and V element once, 2 bytes or in fp8 1 and a scale of 4 for each
// key and value; a group of query heads reads it together. Arithmetic is far below that, so all is arranged for reads:
// - The line of all (sequence, kv head, unit of tokens) is cut into equal shares,
//   one per CTA of a grid that just fills the card, whatever the lengths are. The
//   shares are data (`attention_schedule`, once a step), so that a captured
//   graph serves any lengths.
// - Each warp streams its own 16-token tiles through its own ring of asynchronous
//   copies and runs ahead over the ends of sequences: no barrier, and the ring
//   never drains inside a share.
// - Products are turned round, keys as the rows: S' = K Q' and O' = V' P', so that a
//   group of up to 8 query heads fills the 8 columns of m16n8k16.
// - A sequence cut between CTAs leaves partial results (maximum, sum, weighted
//   values) in memory; the last CTA to arrive merges them in order of position.
//
// Ending a piece that is not a whole sequence costs some microseconds, so sequences are
// left whole or cut in equal parts, one for a CTA, where that spreads the work about as
// well; else the ends of shares are cut wherever they are. Determinism mode cuts every sequence at multiples of a given unit and
// nowhere else: a result then depends on its own sequence alone, not on the batch.

#include "attention_decode_tile.cuh"
#include "attention_schedule.cuh"

using namespace attention;

namespace {

constexpr int WARPS = 4;       // of a CTA: each takes every fourth tile
static_assert(LEAST_UNIT == WARPS * TILE);
constexpr int MERGED = 16;     // partial results read at once

struct DecodeAttention {
    const element* q;       // [sequence][q_stride]
    element* out;           // [sequence][out_stride]
    const element* pool;
    const int* page_table;  // [sequence][max_pages]
    const int* kv_len;      // [sequence], the new token counted; 0: no such sequence
    const int* schedule;
    float* partial;         // [slot][group][D], then [slot][group][maximum, sum]
    unsigned* arrived;      // [sequence][kv_head], zero before and after
    long long page_stride;  // from page to page, in words of sixteen bits
    long long layer_offset; // from a page's start to this layer, as well
    long long slots;
    int q_stride, out_stride;
    int heads, kv_heads;
    int pages, page_tokens, max_pages;
    int window;             // 0: none
    float scale, cap;       // cap 0: none
};

// A run of units of one sequence and kv head within a share.
struct Piece {
    int sequence, kv_head, kv_len;
    int begin, end;       // positions
    int units, first;     // units of the whole sequence; its first on the line
    int unit;             // the piece's own first unit, of the sequence
};

// What is left of a CTA's share.
struct Share {
    int sequence, kv_head, unit, left, kv_len, before;

    __device__ Share(const int* schedule, int cta) {
        const int4* start = reinterpret_cast<const int4*>(schedule + START_INTS * (1 + cta));
        const int4 a = __ldg(start), b = __ldg(start + 1);
        sequence = a.x, kv_head = a.y, unit = a.z, left = a.w, kv_len = b.x, before = b.y;
    }

    __device__ __forceinline__ bool next(const DecodeAttention& p, const Plan& plan, Piece& piece) {
        if (left == 0) return false;
        const Units units(kv_len, plan.unit, p.window);
        const int taken = plan.apart ? 1 : min(left, units.count - unit);
        piece.sequence = sequence, piece.kv_head = kv_head, piece.kv_len = kv_len;
        piece.begin = (units.first + unit) * plan.unit;
        piece.end = min(kv_len, (units.first + unit + taken) * plan.unit);
        piece.units = units.count, piece.first = before * p.kv_heads + kv_head * units.count, piece.unit = unit;
        if (p.window > 0) {
            const int seen = max(0, kv_len - p.window) / (WARPS * TILE) * (WARPS * TILE);
            piece.begin = max(piece.begin, seen);
        }
        unit += taken, left -= taken;
        if (unit == units.count && left > 0) next_head(p, units.count);
        return true;
    }

    __device__ __forceinline__ void next_head(const DecodeAttention& p, int count) {
        unit = 0;
        if (++kv_head < p.kv_heads) return;
        kv_head = 0, before += count;
        do kv_len = usable(__ldg(p.kv_len + ++sequence), p.max_pages * p.page_tokens);
        while (kv_len == 0);
    }
};

template <int D, bool FP8, int QT, int STAGES>
struct Shared {
    Tile<D, FP8> ring[WARPS][STAGES];
    float sums[WARPS][8 * QT][D + 4]; // + 4: rows in different banks
    float maximum[WARPS][8 * QT], sum[WARPS][8 * QT];
    int last;
};

// A warp's ring of tiles, filled ahead of what is computed.
template <int D, bool FP8>
struct Ring {
    Tile<D, FP8>* tiles;
    Share share;
    Piece piece;
    int position;
    bool more;

    __device__ Ring(const DecodeAttention& p, const Plan& plan, Tile<D, FP8>* tiles, Share start)
        : tiles(tiles), share(start) {
        more = share.next(p, plan, piece);
        position = piece.begin + threadIdx.x / 32 * TILE;
    }

    __device__ __forceinline__ void fetch(const DecodeAttention& p, const Plan& plan, int stage) {
        while (more && position >= piece.end) {
            more = share.next(p, plan, piece);
            position = piece.begin + threadIdx.x / 32 * TILE;
        }
        if (more) {
            // Only the newest token is written by the kernel before this one.
            if (position + TILE >= piece.kv_len) wait_for_previous();
            copy(p, stage);
            position += WARPS * TILE;
        }
        commit_copies();
    }

    __device__ __forceinline__ void copy(const DecodeAttention& p, int stage) {
        const Pages pages{p.pool + p.layer_offset, p.page_table + (long long)piece.sequence * p.max_pages,
                          p.pages, p.page_stride, p.page_tokens, row_words<D, FP8>(p.kv_heads)};
        tiles[stage].copy(pages, p.kv_heads, piece.kv_head, position, piece.kv_len);
    }
};

// A warp's running softmax: queries are columns `8 t + lane % 4 * 2 + {0, 1}`.
template <int D, bool FP8, int QT>
struct Running {
    using Tile = attention::Tile<D, FP8>;

    uint32_t query[QT][D / 16][2];
    float query_unit[QT][2];
    float out[QT][D / 16][4];
    float unit; // of `out`
    float maximum[QT][2], sum[QT][2];

    __device__ __forceinline__ void start(const DecodeAttention& p, const Piece& piece, int group) {
        const int lane = threadIdx.x % 32;
        unit = FP8 ? unit_of(0.0f) : 1.0f;
#pragma unroll
        for (int t = 0; t < QT; t++) {
            const int head = 8 * t + lane / 4;
            const element* q = p.q + (long long)piece.sequence * p.q_stride + (piece.kv_head * group + head) * D;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const element* two = q + Tile::query_at(k, half);
                    query[t][k][half] = head < group ? *reinterpret_cast<const uint32_t*>(two) : 0;
                }
#pragma unroll
                for (int i = 0; i < 4; i++) out[t][k][i] = 0.0f;
            }
            maximum[t][0] = maximum[t][1] = -INFINITY;
            sum[t][0] = sum[t][1] = 0.0f;
            const float its = Tile::prepare(query[t]);
#pragma unroll
            for (int column = 0; column < 2; column++)
                query_unit[t][column] = FP8 ? __shfl_sync(~0u, its, (lane % 4 * 2 + column) * 4) : 1.0f;
        }
    }

    __device__ __forceinline__ void add(const DecodeAttention& p, const Tile& tile, int position, int begin, int end) {
        const int token = threadIdx.x % 32 / 4;
        float scores[QT][2][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t keys[4];
            tile.key_fragments(keys, k);
#pragma unroll
            for (int t = 0; t < QT; t++) Tile::product(scores[t][k & 1], keys, query[t][k]);
        }
        const float before = unit;
        unit = tile.unit_after(unit);
        uint32_t weights[QT][2];
#pragma unroll
        for (int t = 0; t < QT; t++) soften(p, tile, scores[t], t, before, position + token, begin, end, weights[t]);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t values[4];
            tile.value_fragments(values, k);
#pragma unroll
            for (int t = 0; t < QT; t++) Tile::product(out[t][k], values, weights[t]);
        }
    }

    // Scores to weights, and everything so far rescaled to the new maximum and unit.
    __device__ __forceinline__ void soften(const DecodeAttention& p, const Tile& tile, const float (&scores)[2][4],
                                           int t, float before, int position, int begin, int end, uint32_t (&weights)[2]) {
        const int token = threadIdx.x % 32 / 4;
        const float inverse = FP8 ? inverse_of(unit) : 1.0f, in_unit = FP8 ? before * inverse : 1.0f;
        float weight[4];
#pragma unroll
        for (int column = 0; column < 2; column++) {
            float score[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = position + 8 * half, i = 2 * half + column;
                const float dot = (scores[0][i] + scores[1][i]) * (tile.key_scale(token + 8 * half) * query_unit[t][column]);
                score[half] = at >= begin && at < end ? exponent(dot, p.scale, p.cap) : -INFINITY;
            }
            float greatest = fmaxf(score[0], score[1]);
            greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 4));
            greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 8));
            greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 16));
            greatest = fmaxf(greatest, maximum[t][column]);
            const float base = greatest == -INFINITY ? 0.0f : greatest;
            const float rescale = exp2_fast(maximum[t][column] - base);
            maximum[t][column] = greatest;
            weight[column] = exp2_fast(score[0] - base);
            weight[2 + column] = exp2_fast(score[1] - base);
            sum[t][column] = sum[t][column] * rescale + (weight[column] + weight[2 + column]);
#pragma unroll
            for (int k = 0; k < D / 16; k++)
                out[t][k][column] *= rescale * in_unit, out[t][k][2 + column] *= rescale * in_unit;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float scale = tile.value_scale(token + 8 * half) * inverse;
            weights[half] = transposed(Tile::pack_operand(weight[2 * half] * scale, weight[2 * half + 1] * scale));
        }
    }

    template <class S>
    __device__ __forceinline__ void store(S& shared) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int t = 0; t < QT; t++) {
#pragma unroll
            for (int column = 0; column < 2; column++) {
                const int head = 8 * t + lane % 4 * 2 + column;
                float total = sum[t][column];
                total += __shfl_xor_sync(~0u, total, 4);
                total += __shfl_xor_sync(~0u, total, 8);
                total += __shfl_xor_sync(~0u, total, 16);
                if (lane < 4) shared.maximum[warp][head] = maximum[t][column], shared.sum[warp][head] = total;
#pragma unroll
                for (int k = 0; k < D / 16; k++) {
                    shared.sums[warp][head][Tile::row(k, 0)] = out[t][k][column] * unit;
                    shared.sums[warp][head][Tile::row(k, 1)] = out[t][k][2 + column] * unit;
                }
            }
        }
    }
};

// Four elements of an output, with their maximum and sum: what merging adds up.
struct Merged {
    float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
    float maximum = -INFINITY, sum = 0.0f;

    // Adds N parts, [maximum, sum] each, in their order; one without weight has maximum -INFINITY.
    template <int N>
    __device__ __forceinline__ void add(const float4 (&parts)[N], const float2 (&scales)[N]) {
        float greatest = maximum;
#pragma unroll
        for (int i = 0; i < N; i++) greatest = fmaxf(greatest, scales[i].x);
        if (greatest == -INFINITY) return;
        const float mine = exp2_fast(maximum - greatest);
        value.x *= mine, value.y *= mine, value.z *= mine, value.w *= mine, sum *= mine;
        maximum = greatest;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float its = exp2_fast(scales[i].x - greatest);
            value.x += parts[i].x * its, value.y += parts[i].y * its;
            value.z += parts[i].z * its, value.w += parts[i].w * its;
            sum += scales[i].y * its;
        }
    }

    __device__ __forceinline__ void write(element* to) const {
        const float inverse = 1.0f / sum;
        *reinterpret_cast<uint2*>(to) =
            make_uint2(pack(value.x * inverse, value.y * inverse), pack(value.z * inverse, value.w * inverse));
    }
};

template <int D>
__device__ __forceinline__ element* output(const DecodeAttention& p, const Piece& piece, int group, int at) {
    return p.out + (long long)piece.sequence * p.out_stride + piece.kv_head * group * D + at;
}

// The parts of one sequence and kv head: which slots hold them, in order.
struct Parts {
    int apart, count, first, own;
    bool first_is_second; // the first part is its CTA's last piece, not its first

    __device__ Parts(const Plan& plan, const Piece& piece, int cta) : apart(plan.apart) {
        if (apart) {
            count = piece.units, first = piece.first, own = piece.first + piece.unit, first_is_second = false;
            return;
        }
        first = share_owner(piece.first, plan.total, plan.ctas);
        count = share_owner(piece.first + piece.units - 1, plan.total, plan.ctas) - first + 1;
        first_is_second = share_begin(first, plan.total, plan.ctas) != piece.first;
        own = 2 * cta + (piece.first + piece.unit != share_begin(cta, plan.total, plan.ctas));
    }

    __device__ __forceinline__ int slot(int part) const {
        return apart ? first + part : 2 * (first + part) + (part == 0 && first_is_second);
    }
};

// Joins the warps' results; to the output if the piece is the whole sequence, else
// to its slot, and the last CTA of the sequence joins the slots.
template <int D, class S>
__device__ __forceinline__ void finish(const DecodeAttention& p, S& shared, const Piece& piece, int group,
                                       const Parts& parts) {
    float2* scales = reinterpret_cast<float2*>(p.partial + p.slots * group * D);
    if (parts.count > 1 && parts.own >= p.slots) __trap(); // more tokens than was said
    __syncthreads();
    for (int at = 4 * threadIdx.x; at < group * D; at += 4 * WARPS * 32) {
        const int head = at / D;
        float4 warps[WARPS];
        float2 scale[WARPS];
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            warps[warp] = *reinterpret_cast<const float4*>(&shared.sums[warp][head][at % D]);
            scale[warp] = make_float2(shared.maximum[warp][head], shared.sum[warp][head]);
        }
        Merged merged;
        merged.add(warps, scale);
        if (parts.count == 1) {
            merged.write(output<D>(p, piece, group, at));
        } else {
            __stcg(reinterpret_cast<float4*>(p.partial + (long long)parts.own * group * D + at), merged.value);
            if (at % D == 0)
                __stcg(scales + (long long)parts.own * group + head, make_float2(merged.maximum, merged.sum));
        }
    }
    if (parts.count > 1) {
        unsigned* arrived = p.arrived + piece.sequence * p.kv_heads + piece.kv_head;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) shared.last = atomicAdd(arrived, 1) == parts.count - 1;
        __syncthreads();
        if (!shared.last) return;
        __threadfence();
        if (threadIdx.x == 0) *arrived = 0;
        for (int at = 4 * threadIdx.x; at < group * D; at += 4 * WARPS * 32) {
            Merged merged;
            for (int first = 0; first < parts.count; first += MERGED) {
                float4 part[MERGED];
                float2 scale[MERGED];
#pragma unroll
                for (int i = 0; i < MERGED; i++) {
                    // Past the last part the last one comes again, without weight.
                    const bool there = first + i < parts.count;
                    const long long row = (long long)parts.slot(there ? first + i : parts.count - 1) * group;
                    part[i] = __ldcg(reinterpret_cast<const float4*>(p.partial + row * D + at));
                    scale[i] = __ldcg(scales + row + at / D);
                    if (!there) scale[i] = make_float2(-INFINITY, 0.0f);
                }
                merged.add(part, scale);
            }
            merged.write(output<D>(p, piece, group, at));
        }
    }
    __syncthreads();
}

template <int D, bool FP8, int QT, int STAGES>
__device__ __forceinline__ void decode(const DecodeAttention& p) {
    extern __shared__ __align__(128) unsigned char memory[];
    auto& shared = *reinterpret_cast<Shared<D, FP8, QT, STAGES>*>(memory);
    const int cta = blockIdx.x, warp = threadIdx.x / 32, group = p.heads / p.kv_heads;
    const Plan plan(p.schedule);
    if (cta >= plan.ctas) { // waits all the same: who comes after counts on it
        let_next_start();
        wait_for_previous();
        return;
    }
    Share share(p.schedule, cta);
    Ring<D, FP8> ring(p, plan, shared.ring[warp], share);
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) ring.fetch(p, plan, stage);
    wait_for_previous();

    Running<D, FP8, QT> running;
    Piece piece;
    int stage = 0;
    while (share.next(p, plan, piece)) {
        running.start(p, piece, group);
        const int begin = p.window > 0 ? max(piece.begin, piece.kv_len - p.window) : piece.begin;
        for (int position = piece.begin + warp * TILE; position < piece.end; position += WARPS * TILE) {
            wait_copies<STAGES - 2>();
            __syncwarp();
            ring.fetch(p, plan, stage == 0 ? STAGES - 1 : stage - 1);
            running.add(p, shared.ring[warp][stage], position, begin, piece.end);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        // All is asked for: what the next kernel asks for ahead comes while memory would fall idle.
        if (share.left == 0) let_next_start();
        running.store(shared);
        finish<D>(p, shared, piece, group, Parts(plan, piece, cta));
    }
    wait_copies<0>();
}

} // namespace

#define INSTANCE(NAME, D, FP8, QT, STAGES)                                                                   \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, FP8 && D <= 128 && QT == 1 ? 4 : 1)             \
    attention_decode##NAME##_d##D##_q##QT##_s##STAGES(const __grid_constant__ DecodeAttention p) {           \
        decode<D, FP8, QT, STAGES>(p);                                                                       \
    }

// Head dimension, form of the cache, query heads of a group by eights, stages: three where
// shared memory allows two CTAs of them on a multiprocessor or one at least, else two. In fp8
// two leave room for four CTAs, which have more under way together.
INSTANCE(, 64, false, 1, 3)
INSTANCE(, 64, false, 2, 3)
INSTANCE(, 96, false, 1, 2)
INSTANCE(, 96, false, 2, 2)
INSTANCE(, 128, false, 1, 2)
INSTANCE(, 128, false, 1, 3)
INSTANCE(, 128, false, 2, 2)
INSTANCE(, 128, false, 2, 3)
INSTANCE(, 256, false, 1, 2)
INSTANCE(, 256, false, 2, 2)
INSTANCE(_fp8, 64, true, 1, 2)
INSTANCE(_fp8, 64, true, 2, 2)
INSTANCE(_fp8, 96, true, 1, 2)
INSTANCE(_fp8, 96, true, 2, 2)
INSTANCE(_fp8, 128, true, 1, 2)
INSTANCE(_fp8, 128, true, 2, 2)
INSTANCE(_fp8, 256, true, 1, 2)
INSTANCE(_fp8, 256, true, 2, 2)
