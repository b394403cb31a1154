// Rows of logits, changed before a token is drawn from them: biases added, tokens of the
// sequence so far made less likely, and tokens forbidden.
//
// One block a row. What a sequence has said is a list of its own on the card, which the
// row's newest token joins here: that token may be known to nobody but the card. So a
// step needs nothing of the step before that the host would have to read.
//
//   list   [entries, biases], then as many [token, bias], then [token, times in the answer]
//
// Reads the list and the logits of its tokens; a mask, and the logits that it forbids.
#include "common.cuh"

namespace {

// What is done to a row: 32 bytes, as the host writes them.
struct Shape {
    float repetition, presence, frequency;
    int slot;   // whose list; negative: none
    int newest; // row of the step whose token joins the list; negative: it is complete
    int times;  // how often that counts as the answer's: 0 for a prompt's token
    int masked; // not 0: tokens without a bit in the row's mask are forbidden
    int unused;
};

// NaN is never drawn; infinities would make others NaN.
__device__ __forceinline__ float usable(float logit) {
    return logit != logit ? -INFINITY : fminf(logit, 3.402823466e38f);
}

// Adds a token to the list, or to how often it is there. All threads get the new length.
__device__ int join(int2* list, int token, int times, int capacity) {
    __shared__ int found;
    const int2 head = list[0];
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (int i = 1 + head.y + threadIdx.x; i < head.x; i += blockDim.x) {
        if (list[i].x == token) list[i].y += times, found = 1;
    }
    __syncthreads();
    const bool is_new = !found && head.x < capacity;
    if (is_new && threadIdx.x == 0) list[head.x] = make_int2(token, times), list[0].x = head.x + 1;
    __syncthreads();
    return head.x + is_new;
}

// As the host computes it, to the bit: no product and sum in one.
__device__ __forceinline__ float penalized(float logit, const Shape& shape, int times) {
    logit = logit > 0.0f ? __fdiv_rn(logit, shape.repetition) : __fmul_rn(logit, shape.repetition);
    if (times == 0) return logit;
    return __fsub_rn(logit, __fadd_rn(shape.presence, __fmul_rn(shape.frequency, (float)times)));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    shape(float* logits, const Shape* shapes, const unsigned* masks, int2* lists, const int* tokens, const int* drawn,
          int drawn_tokens, int vocab, int capacity) {
    let_next_start();
    wait_for_previous();
    const Shape shape = shapes[blockIdx.x];
    float* row = logits + (size_t)blockIdx.x * vocab;
    if (shape.slot >= 0) {
        int2* list = lists + (size_t)shape.slot * capacity;
        int entries = list[0].x;
        if (shape.newest >= 0) {
            int token = tokens[shape.newest];
            if (token < 0 && ~token < drawn_tokens) token = drawn[~token];
            entries = join(list, token, shape.times, capacity);
        }
        const int biases = list[0].y;
        for (int i = 1 + threadIdx.x; i <= biases; i += blockDim.x) {
            const int2 entry = list[i];
            if (entry.x >= 0 && entry.x < vocab) row[entry.x] = usable(row[entry.x]) + __int_as_float(entry.y);
        }
        __syncthreads();
        for (int i = 1 + biases + threadIdx.x; i < entries; i += blockDim.x) {
            const int2 entry = list[i];
            if (entry.x >= 0 && entry.x < vocab) row[entry.x] = penalized(usable(row[entry.x]), shape, entry.y);
        }
    }
    if (shape.masked == 0) return;
    __syncthreads();
    const unsigned* mask = masks + (size_t)blockIdx.x * ((vocab + 31) / 32);
    for (int id = threadIdx.x; id < vocab; id += blockDim.x) {
        if (!(mask[id / 32] >> id % 32 & 1)) row[id] = -INFINITY;
    }
}
