// Cuts a step's work on single tokens into shares, one for each CTA of a grid that just
// fills the card; see attention_decode.cu for why, attention_schedule.cuh for what it writes.
//
// Reads the sequences' lengths a few times, writes 32 bytes a CTA: a microsecond or two, once
// a step for each window that layers have.
#include "attention_schedule.cuh"

using namespace attention;

namespace {

constexpr int MAX_SEQUENCES = 4096;

// Sum of `value` over the threads before this one, and over all of them.
__device__ int sum_before(int value, int (&warps)[32], int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    int before = 0;
    total = 0;
    for (int i = 0; i < blockDim.x / 32; i++) {
        before += i < warp ? warps[i] : 0;
        total += warps[i];
    }
    return before + sum - value;
}

// The unit that cuts nothing but sequences, or these into equal parts, at little loss: in it
// the CTA with the most work has hardly more than the average, or no CTA has two pieces.
// 0 if there is none. Each warp tries a candidate; the last one, whole sequences.
__device__ int unit_for_pieces_apart(const int* kv_lens, int sequences, int most_tokens, int kv_heads, int window,
                                     int total, int grid) {
    __shared__ unsigned long long best; // [most work of a CTA, unit], in least units
    if (total == 0) return 0;
    if (threadIdx.x == 0) best = ~0ull;
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, average = (total + grid - 1) / grid;
    const bool whole = warp == 31;
    int size = whole ? 0 : average + warp * (average / 62 + 1), work = size, pieces = 0;
    if (whole) {
        for (int i = lane; i < sequences; i += 32) {
            const int kv_len = usable(kv_lens[i], most_tokens);
            size = max(size, (kv_len + LEAST_UNIT - 1) / LEAST_UNIT);
            work = max(work, Units(kv_len, LEAST_UNIT, window).count);
        }
        size = __reduce_max_sync(~0u, size), work = __reduce_max_sync(~0u, work);
    }
    for (int i = lane; i < sequences; i += 32)
        pieces += Units(usable(kv_lens[i], most_tokens), size * LEAST_UNIT, window).count;
    const int rounds = (__reduce_add_sync(~0u, pieces) * kv_heads + grid - 1) / grid, most = rounds * work;
    // Cut pieces need a slot each: no more than CTAs.
    const bool good = rounds == 1 ? work <= average + average / 2 + 1 : whole && most <= average + average / 32 + 2;
    if (lane == 0 && good) atomicMin(&best, (unsigned long long)most << 32 | size);
    __syncthreads();
    return best == ~0ull ? 0 : (int)(best & 0xffffffff) * LEAST_UNIT;
}

} // namespace

// Cuts the step's work into shares: `schedule` is a `Plan`, then for each CTA [sequence,
// kv head, unit, units, kv_len, units of the sequences before]. `fixed_unit` 0: any cuts.
// One CTA of 1024 threads; at most MAX_SEQUENCES sequences.
extern "C" __global__ void __launch_bounds__(1024)
attention_schedule(const int* kv_len, int sequences, int most_tokens, int kv_heads, int fixed_unit,
                          int window, int grid, int* schedule) {
    __shared__ int before[MAX_SEQUENCES], warps[32];
    wait_for_previous();
    const int each = (sequences + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each;
    const int end_of_mine = min(first + each, sequences);
    int unit = fixed_unit > 0 ? fixed_unit : LEAST_UNIT, sum = 0, total;
    bool apart = fixed_unit > 0;
    for (bool chosen = apart;; chosen = true) {
        int mine = 0;
        for (int i = first; i < end_of_mine; i++) mine += Units(usable(kv_len[i], most_tokens), unit, window).count;
        sum = sum_before(mine, warps, total);
        total *= kv_heads;
        if (chosen) break;
        const int larger =
             unit_for_pieces_apart(kv_len, sequences, most_tokens, kv_heads, window, total, grid);
        if (larger == 0) break;
        unit = larger, apart = true;
    }
    for (int i = first; i < end_of_mine; i++) {
        before[i] = sum;
        sum += Units(usable(kv_len[i], most_tokens), unit, window).count;
    }
    __syncthreads();
    const int ctas = min(grid, total);
    if (threadIdx.x == 0) *reinterpret_cast<int4*>(schedule) = make_int4(total, ctas, unit, apart);
    for (int cta = threadIdx.x; cta < ctas; cta += blockDim.x) {
        const int begin = share_begin(cta, total, ctas), end = share_begin(cta + 1, total, ctas);
        int low = 0, high = sequences; // the last sequence that begins at or before `begin`
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (before[middle] * kv_heads <= begin) low = middle;
            else high = middle;
        }
        const int length = usable(kv_len[low], most_tokens), count = Units(length, unit, window).count;
        const int at = begin - before[low] * kv_heads;
        int4* start = reinterpret_cast<int4*>(schedule + START_INTS * (1 + cta));
        start[0] = make_int4(low, at / count, at % count, end - begin);
        start[1] = make_int4(length, before[low], 0, 0);
    }
}
