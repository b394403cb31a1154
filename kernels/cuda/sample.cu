// tokens[row] = a token drawn from the row's logits, or the likeliest; -1 when every
// logit is NaN or minus infinity.
//
// One block a row. A token weighs exp((logit - peak) / temperature), with the exponent
// rounded to RESOLUTION steps from 0 to RANGE: its distance. Tokens of one distance weigh
// the same, to the bit, and sums of weights are whole numbers: no result depends on the
// order of threads. Tokens are ranked by distance, then by id.
//
// top-k, then top-p of what that leaves, then min-p, are a limit on the rank: all tokens
// below a distance, and the first few of that distance. It is found in a histogram of
// the distances' high bits, and then in one of the low bits of a single bin. Then the
// limited weights are added up by stretches of ids, one for each warp, and the warp whose
// stretch holds the drawn share walks through it.
//
// Reads the logits once for the likeliest, twice more to draw, and up to three times more
// for limits; they are mostly in L2.
#include "common.cuh"

namespace {

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr float RANGE = 24.0f; // beyond it a token weighs less than 4e-11, and is never drawn
constexpr int BITS = 11;
constexpr int BINS = 1 << BITS;
constexpr int RESOLUTION = BINS * BINS;
constexpr float UNIT = 1ull << 40; // weight of the likeliest

// How a row is drawn: 32 bytes, as the host writes them.
struct Draw {
    float temperature; // 0: the likeliest
    int top_k;         // 0: any
    float top_p, min_p;
    unsigned share_low, share_high; // of the weights before the drawn token, in 2^-64
    int unused[2];
};

// The tokens that may be drawn: of a smaller distance, and the first `quota` of this one.
struct Limit {
    int distance = RESOLUTION - 1, quota = 0x7fffffff;
};

struct Shared {
    unsigned counts[BINS];
    unsigned long long masses[BINS], bests[WARPS], sums[WARPS];
    unsigned quotas[WARPS];
    int found;
    unsigned long long before;
};

// Greater for a greater logit, and at the same logit for a lower id.
__device__ __forceinline__ unsigned long long rank(float logit, unsigned id) {
    // 0.0 and -0.0 are the same logit.
    unsigned bits = __float_as_uint(logit + 0.0f);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    // Neither is ever chosen: below every other rank.
    if (logit != logit || logit == -INFINITY) return 0;
    return (unsigned long long)bits << 32 | ~id;
}

__device__ __forceinline__ unsigned long long greater(unsigned long long a, unsigned long long b) {
    return a > b ? a : b;
}

// The row's greatest rank, in every thread.
__device__ unsigned long long best_of(const float* row, int vocab, Shared& shared) {
    // Loads in flight: one block has the row to itself, and must hide their delay.
    constexpr int TURNS = 8;
    // In rising order of ids, so that only a greater logit takes the place.
    float greatest = -INFINITY;
    unsigned id = 0;
    auto look = [&](float logit, unsigned at) {
        if (logit > greatest) {
            greatest = logit;
            id = at;
        }
    };
    // Rows of an odd vocabulary do not begin at 16 bytes.
    const int wide = vocab % 4 == 0 ? vocab : 0;
    for (int begin = threadIdx.x * 4; begin < wide; begin += TURNS * THREADS * 4) {
        float4 some[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int i = begin + turn * THREADS * 4;
            if (i < wide) some[turn] = *reinterpret_cast<const float4*>(row + i);
        }
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int i = begin + turn * THREADS * 4;
            if (i >= wide) break;
            look(some[turn].x, i), look(some[turn].y, i + 1), look(some[turn].z, i + 2), look(some[turn].w, i + 3);
        }
    }
    for (int i = wide + threadIdx.x; i < vocab; i += THREADS) look(row[i], i);
    unsigned long long best = rank(greatest, id);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        best = greater(best, __shfl_xor_sync(~0u, best, distance));
    }
    if (threadIdx.x % 32 == 0) shared.bests[threadIdx.x / 32] = best;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) best = greater(best, shared.bests[warp]);
    return best;
}

// Weights of a row, by distance.
struct Row {
    const float* logits;
    int vocab;
    float peak, scale; // steps of distance for each unit of a logit

    __device__ __forceinline__ int distance(int id) const { return distance_of(logits[id]); }

    // `look(distance)` for every `step`-th token from `begin` on, some loads in flight.
    template <class F>
    __device__ __forceinline__ void each(int begin, int end, int step, F look) const {
        constexpr int TURNS = 8;
        for (int base = begin; base < end; base += TURNS * step) {
            float some[TURNS];
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const int id = base + turn * step;
                some[turn] = id < end ? logits[id] : -INFINITY;
            }
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) look(distance_of(some[turn]));
        }
    }

    // RESOLUTION for a token that is never drawn.
    __device__ __forceinline__ int distance_of(float logit) const {
        if (logit != logit) return RESOLUTION;
        const float steps = (peak - fminf(logit, peak)) * scale;
        return steps < RESOLUTION ? (int)steps : RESOLUTION;
    }
};

__device__ __forceinline__ unsigned long long weight(int distance) {
    return __float2ull_rn(exp2f(distance * (-RANGE * 1.4426950408889634f / RESOLUTION)) * UNIT);
}

// How many tokens each bin of `bins` distances holds, and what they weigh together:
// all distances by their high bits (`high` negative), or those with these high bits by their low ones.
__device__ void count(const Row& row, int high, Shared& shared) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) shared.counts[bin] = 0, shared.masses[bin] = 0;
    __syncthreads();
    row.each(threadIdx.x, row.vocab, THREADS, [&](int distance) {
        if (distance == RESOLUTION || (high >= 0 && distance >> BITS != high)) return;
        const int bin = high < 0 ? distance >> BITS : distance & (BINS - 1);
        atomicAdd(&shared.counts[bin], 1);
        atomicAdd(&shared.masses[bin], weight(distance));
    });
    __syncthreads();
}

// The first bin with which the sum of `of(bin)` reaches `target`, and the sum before it;
// the last bin that has any if none does. All threads get both.
template <class F>
__device__ int reach(unsigned long long target, F of, Shared& shared, unsigned long long& before) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = threadIdx.x * (BINS / THREADS);
    unsigned long long mine = 0;
    for (int i = 0; i < BINS / THREADS; i++) mine += of(first + i);
    unsigned long long sum = mine;
    for (int step = 1; step < 32; step *= 2) {
        const unsigned long long other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (threadIdx.x == 0) shared.found = -1;
    if (lane == 31) shared.sums[warp] = sum;
    __syncthreads();
    unsigned long long all = 0;
    for (int i = 0; i < WARPS; i++) {
        if (i < warp) sum += shared.sums[i];
        all += shared.sums[i];
    }
    const unsigned long long wanted = target < all ? target : all;
    sum -= mine;
    for (int i = 0; i < BINS / THREADS; i++) {
        const unsigned long long more = of(first + i);
        if (more > 0 && sum < wanted && sum + more >= wanted) shared.found = first + i, shared.before = sum;
        sum += more;
    }
    __syncthreads();
    before = shared.before;
    const int found = shared.found;
    __syncthreads();
    return found;
}

// Lowers the limit to the ranks with which the tokens' number, or their weight, reaches `target`.
template <bool BY_WEIGHT>
__device__ void lower(const Row& row, unsigned long long target, Limit& limit, Shared& shared) {
    auto size = [&](int bin) { return BY_WEIGHT ? shared.masses[bin] : (unsigned long long)shared.counts[bin]; };
    unsigned long long before, inside;
    count(row, -1, shared);
    const int high = reach(target, size, shared, before);
    if (high < 0) return;
    count(row, high, shared);
    const int low = reach(target - before, size, shared, inside);
    if (low < 0) return;
    const int distance = high << BITS | low;
    const unsigned long long left = target - before - inside, one = BY_WEIGHT ? weight(distance) : 1;
    const unsigned long long needed = one > 0 ? (left + one - 1) / one : 1;
    const int quota = (int)(needed < 1 ? 1 : needed < 0x7fffffff ? needed : 0x7fffffff);
    if (distance < limit.distance) limit = {distance, quota};
    else if (distance == limit.distance) limit.quota = min(limit.quota, quota);
}

// Stretch of ids of a warp.
struct Stretch {
    int begin, end;

    __device__ Stretch(int warp, int vocab) {
        const int each = ((vocab + WARPS - 1) / WARPS + 31) / 32 * 32;
        begin = min(warp * each, vocab), end = min(begin + each, vocab);
    }
};

// Adds up the weights below the limit by stretches: afterwards `sums` holds each warp's,
// and `quotas` how many tokens at the limit come before it. Returns the whole.
__device__ unsigned long long add_up(const Row& row, const Limit& limit, Shared& shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Stretch stretch(warp, row.vocab);
    unsigned long long sum = 0;
    unsigned at_limit = 0;
    row.each(stretch.begin + lane, stretch.end, 32, [&](int distance) {
        if (distance < limit.distance) sum += weight(distance);
        if (distance == limit.distance) at_limit++;
    });
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    at_limit = __reduce_add_sync(~0u, at_limit);
    __syncthreads();
    if (lane == 0) shared.sums[warp] = sum, shared.quotas[warp] = at_limit;
    __syncthreads();
    unsigned before = 0;
    unsigned long long whole = 0, mine = sum;
    for (int i = 0; i < WARPS; i++) {
        const unsigned here = shared.quotas[i], left = (unsigned)limit.quota - min((unsigned)limit.quota, before);
        const unsigned long long all = shared.sums[i] + min(here, left) * weight(limit.distance);
        whole += all;
        if (i == warp) mine = all, at_limit = before;
        before += here;
    }
    __syncthreads();
    if (lane == 0) shared.sums[warp] = mine, shared.quotas[warp] = at_limit;
    __syncthreads();
    return whole;
}

// The first token of the warp's stretch whose weight uses up what is left; the last
// that has any weight if none does.
__device__ int walk(const Row& row, const Limit& limit, int warp, unsigned long long left, unsigned before) {
    const int lane = threadIdx.x % 32;
    const Stretch stretch(warp, row.vocab);
    int last = -1;
    for (int base = stretch.begin; base < stretch.end; base += 32) {
        const int id = base + lane, distance = id < stretch.end ? row.distance(id) : RESOLUTION;
        const unsigned at_limit = __ballot_sync(~0u, distance == limit.distance);
        const unsigned place = before + __popc(at_limit & ((1u << lane) - 1));
        const bool may = distance < limit.distance || (distance == limit.distance && place < (unsigned)limit.quota);
        before += __popc(at_limit);
        unsigned long long sum = may ? weight(distance) : 0;
        const unsigned some = __ballot_sync(~0u, sum > 0);
        for (int step = 1; step < 32; step *= 2) {
            const unsigned long long other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        const unsigned past = __ballot_sync(~0u, sum > left) & some;
        if (past) return base + __ffs(past) - 1;
        left -= __shfl_sync(~0u, sum, 31);
        if (some) last = base + 31 - __clz(some);
    }
    return last;
}

__device__ void draw_token(const Row& row, const Draw& draw, Shared& shared, int* token) {
    Limit limit;
    if (draw.top_k > 0 && draw.top_k < row.vocab) lower<false>(row, draw.top_k, limit, shared);
    if (draw.top_p < 1.0f) {
        const unsigned long long whole = add_up(row, limit, shared);
        const double share = fmax(draw.top_p, 0.0f);
        lower<true>(row, max((unsigned long long)ceil(share * whole), 1ull), limit, shared);
    }
    if (draw.min_p > 0.0f) {
        // The likeliest weighs 1, and always stays.
        const float far = -logf(fminf(draw.min_p, 1.0f)) * (RESOLUTION / RANGE);
        if (far < limit.distance) limit = {(int)far, 0x7fffffff};
    }
    const unsigned long long whole = add_up(row, limit, shared);
    const unsigned long long share = (unsigned long long)draw.share_high << 32 | draw.share_low;
    unsigned long long left = __umul64hi(whole, share);
    int warp = 0;
    while (warp + 1 < WARPS && left >= shared.sums[warp]) left -= shared.sums[warp++];
    if (threadIdx.x / 32 == warp) {
        const int drawn = walk(row, limit, warp, left, shared.quotas[warp]);
        if (threadIdx.x % 32 == 0) *token = drawn;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    sample(const float* logits, const Draw* draws, int* tokens, int vocab) {
    __shared__ Shared shared;
    let_next_start();
    wait_for_previous();
    const float* row = logits + (size_t)blockIdx.x * vocab;
    const Draw draw = draws[blockIdx.x];
    const unsigned long long best = best_of(row, vocab, shared);
    const int likeliest = best == 0 ? -1 : (int)~(unsigned)best;
    if (!(draw.temperature > 0.0f) || best == 0) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = likeliest;
        return;
    }
    const float peak = fminf(row[likeliest], 3.4e38f);
    const float scale = fminf(RESOLUTION / RANGE / draw.temperature, 1e30f);
    draw_token(Row{row, vocab, peak, scale}, draw, shared, tokens + blockIdx.x);
}
