// tokens[row] = the lowest id of the greatest logit of the row; -1 when every
// logit is NaN or minus infinity.
//
// One block a row: each thread keeps its best, a logit and an id packed into
// one word that orders first by logit, then by lower id. Reads the logits once.
#include "common.cuh"

namespace {

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

template <typename T>
__device__ void argmax(const T* logits, int* tokens, int vocab) {
    constexpr int WIDE = 16 / sizeof(T);
    // Loads in flight: one block has the row to itself, and must hide their delay.
    constexpr int TURNS = 2 * sizeof(T);
    struct alignas(16) Vector {
        T at[WIDE];
    };
    __shared__ unsigned long long bests[32];
    let_next_start();
    wait_for_previous();
    const T* row = logits + (size_t)blockIdx.x * vocab;
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
    int wide = vocab % WIDE == 0 ? vocab : 0;
    for (int begin = threadIdx.x * WIDE; begin < wide; begin += TURNS * blockDim.x * WIDE) {
        Vector some[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            int i = begin + turn * blockDim.x * WIDE;
            if (i < wide) some[turn] = *reinterpret_cast<const Vector*>(row + i);
        }
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            int i = begin + turn * blockDim.x * WIDE;
            if (i >= wide) break;
#pragma unroll
            for (int j = 0; j < WIDE; j++) look((float)some[turn].at[j], i + j);
        }
    }
    for (int i = wide + threadIdx.x; i < vocab; i += blockDim.x) look((float)row[i], i);
    unsigned long long best = rank(greatest, id);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        best = greater(best, __shfl_xor_sync(~0u, best, distance));
    }
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < blockDim.x / 32; warp++) best = greater(best, bests[warp]);
        tokens[blockIdx.x] = best == 0 ? -1 : (int)~(unsigned)best;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    argmax_bf16(const __nv_bfloat16* logits, int* tokens, int vocab) {
    argmax(logits, tokens, vocab);
}

extern "C" __global__ void __launch_bounds__(1024) argmax_f32(const float* logits, int* tokens, int vocab) {
    argmax(logits, tokens, vocab);
}
