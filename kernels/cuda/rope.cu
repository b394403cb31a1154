// Rotary embedding of queries and keys, and the write of keys and values into
// pages, from the rows that the QKV product made: [row][heads + 2 kv_heads][head_dim].
//
//   rope_write      pages hold elements
//   rope_write_fp8  pages hold e4m3, with a scale for each head's key and value of a token
//
// One block a row. Cosines and sines are computed once for the row, in shared
// memory; then each thread takes 8 elements of a head together with the 8 they
// turn with. Queries turn in place; keys and values go to the pages and are
// left as they were in the row. In fp8 a warp has a whole key or value, so that the greatest
// of it is found by shuffles. Moves 2 bytes an element in, 2 out, or 1 of those in fp8.
//
// A page holds [layer][token][row], a row being [K|V][kv_head][head_dim] and in fp8 behind
// that the scales, [K|V][kv_head] in f32; `slots[row]` is
// page * page_tokens + token, or negative for a row that has no place (padding).
#include "e4m3.cuh"

namespace {

struct Job {
    element* qkv;
    const int* positions;
    const float* frequencies;
    float magnitude;
    const int* slots;
    unsigned char* pages;
    int pool_tokens, page_tokens, layers, layer;
    int heads, kv_heads, head_dim, turning;
};

// Of one row: pairs of elements `i` and `i + half` turn by an angle each.
struct Turning {
    const float *cosines, *sines;
    int half;

    __device__ __forceinline__ void turn(const element* head, int low, float (&a)[8], float (&b)[8]) const {
        float x[8], y[8];
        unpack(load8(head + low), x);
        unpack(load8(head + low + half), y);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float cosine = cosines[low + j], sine = sines[low + j];
            a[j] = x[j] * cosine - y[j] * sine;
            b[j] = y[j] * cosine + x[j] * sine;
        }
    }
};

// Queries in place, and if they have a place keys, whose heads are behind theirs.
__device__ __forceinline__ void turn_heads(const Job& job, const Turning& turning, element* row, int heads,
                                           element* keys) {
    // A head is half / 8 pairs of vectors, then what does not turn.
    const int pairs = turning.half / 8, items = pairs + (job.head_dim - job.turning) / 8;
    for (int item = threadIdx.x; item < heads * items; item += blockDim.x) {
        const int head = item / items, part = item % items;
        const element* from = row + head * job.head_dim;
        element* to = head < job.heads ? row + head * job.head_dim : keys + (head - job.heads) * job.head_dim;
        if (part >= pairs) {
            const int at = job.turning + (part - pairs) * 8;
            if (head >= job.heads) store8(to + at, load8(from + at));
            continue;
        }
        float a[8], b[8];
        turning.turn(from, part * 8, a, b);
        store8(to + part * 8, pack(a));
        store8(to + part * 8 + turning.half, pack(b));
    }
}

// One warp: a key, or a value, of which no pairs turn.
__device__ __forceinline__ void quantise_head(const Turning& turning, const element* head, int head_dim,
                                              unsigned char* to, float* scale) {
    const int lane = threadIdx.x % 32, pairs = turning.half / 8;
    const bool turns = lane < pairs;
    const int low = turns ? lane * 8 : 2 * turning.half + (lane - pairs) * 8;
    float a[8] = {}, b[8] = {};
    if (turns) turning.turn(head, low, a, b);
    else if (low < head_dim) unpack(load8(head + low), a);
    float greatest = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) greatest = fmaxf(greatest, fmaxf(fabsf(a[j]), fabsf(b[j])));
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, distance));
    const Rounding rounding(greatest);
    if (low < head_dim) *reinterpret_cast<uint2*>(to + low) = rounding.eight(a);
    if (turns) *reinterpret_cast<uint2*>(to + low + turning.half) = rounding.eight(b);
    if (lane == 0) *scale = rounding.scale;
}

template <bool FP8>
__device__ void rope(const Job& job) {
    extern __shared__ float cosines[];
    const int half = job.turning / 2;
    float* sines = cosines + half;
    let_next_start();
    const float mine = threadIdx.x < half ? job.frequencies[threadIdx.x] : 0.0f;
    wait_for_previous();

    const float position = job.positions[blockIdx.x];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float sine, cosine;
        // The angle is rounded to f32, as in the models' reference implementation.
        sincosf(__fmul_rn(position, i == threadIdx.x ? mine : job.frequencies[i]), &sine, &cosine);
        cosines[i] = cosine * job.magnitude;
        sines[i] = sine * job.magnitude;
    }
    __syncthreads();

    const Turning turning{cosines, sines, half};
    const int slot = job.slots[blockIdx.x], kv_elements = job.kv_heads * job.head_dim;
    const bool is_placed = slot >= 0 && slot < job.pool_tokens;
    const size_t row_bytes = FP8 ? 2 * (kv_elements + 4 * job.kv_heads) : 4 * kv_elements;
    const size_t page = slot / job.page_tokens, token = slot % job.page_tokens;
    unsigned char* to = job.pages + ((page * job.layers + job.layer) * job.page_tokens + token) * row_bytes;
    element* row = job.qkv + (size_t)blockIdx.x * (job.heads + 2 * job.kv_heads) * job.head_dim;
    const element* kv = row + job.heads * job.head_dim;

    element* keys = reinterpret_cast<element*>(to);
    turn_heads(job, turning, row, job.heads + (is_placed && !FP8 ? job.kv_heads : 0), keys);
    if (!is_placed) return;
    if (FP8) {
        float* scales = reinterpret_cast<float*>(to + 2 * kv_elements);
        for (int head = threadIdx.x / 32; head < 2 * job.kv_heads; head += blockDim.x / 32) {
            const Turning its{cosines, sines, head < job.kv_heads ? half : 0};
            quantise_head(its, kv + head * job.head_dim, job.head_dim, to + head * job.head_dim, scales + head);
        }
    } else {
        for (int i = threadIdx.x * 8; i < kv_elements; i += blockDim.x * 8)
            store8(keys + kv_elements + i, load8(kv + kv_elements + i));
    }
}

} // namespace

#define INSTANCE(NAME, FP8)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                        \
        NAME(element* qkv, const int* positions, const float* frequencies, float magnitude, const int* slots,\
             unsigned char* pages, int pool_tokens, int page_tokens, int layers, int layer, int heads,       \
             int kv_heads, int head_dim, int turning) {                                                      \
        rope<FP8>(Job{qkv, positions, frequencies, magnitude, slots, pages, pool_tokens, page_tokens,        \
                      layers, layer, heads, kv_heads, head_dim, turning});                                   \
    }

INSTANCE(rope_write, false)
INSTANCE(rope_write_fp8, true)
