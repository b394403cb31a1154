// out[m][n] = sum over k of x[m][k] * w[n][k], for few rows of x: reads the
// weights once, at the rate of memory, whatever the number of rows.
//
// A block makes 16 outputs for all rows of x. Its warps share out k, 32 elements
// at a time; a thread loads 16 bytes (8 elements of k) of two rows of w straight
// into the registers of the tensor cores' operand, and the same 8 elements of a
// row of x. Which k stands where in the operands does not matter as long as both
// agree: two products of depth 16 use up the 8 elements of each of the 4 threads
// that share a row.
//
// STAGES loads of each row are in flight, and the first of them are issued before
// the kernel waits for the one before it, as weights are constant: memory stays
// busy from one kernel to the next. Weights are read once a step, so they are the
// first to leave L2, which keeps it for what is read again; without that hint the
// o projection of an 8B model ran at 2.55 TB/s on an H100 instead of 2.83.
//
// Each output is summed in an order that depends on k alone, so a row's results
// are the same bits whatever other rows are there.
//
// Moves n * k * 2 bytes from memory; x comes from L2, n / 16 times.
#include "element.cuh"

namespace {

constexpr int WARPS = 16;
constexpr int STAGES = 2;
// Elements of k that a warp takes at a time.
constexpr int STEP = 32;
// Elements of k between two turns of a warp.
constexpr int TURN = WARPS * STEP;
// Floats between two rows of x in the partial sums: no two threads of a warp
// write to one bank.
constexpr int STRIDE = 20;

// What happens to the sums.
enum Form { STORE, STORE_F32, ADD, GATE_SILU, GATE_GELU };

struct Job {
    const element* x;
    const element* w;
    void* out;
    int m, n, k, form;
};

// Weights pass through once: they need no place in L1, and the first one in L2.
__device__ __forceinline__ uint4 load_once(const element* from) {
    uint4 value;
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from), "l"(policy));
    return value;
}

__device__ __forceinline__ void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." ELEMENT "." ELEMENT ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void finish(const Job& job, int row, int token, float sum, float up) {
    size_t at = (size_t)token * job.n + row;
    element* out = static_cast<element*>(job.out);
    switch (job.form) {
        case STORE_F32: static_cast<float*>(job.out)[at] = sum; return;
        case ADD: sum += to_float(out[at]); break;
        case GATE_SILU: sum = silu(sum) * up; break;
        case GATE_GELU: sum = gelu_tanh(sum) * up; break;
        default: break;
    }
    out[at] = to_element(sum);
}

// TILES * 8 is the greatest m.
template <int TILES>
__device__ void product(const Job& job) {
    constexpr int TOKENS = TILES * 8;
    __shared__ float partial[WARPS][TOKENS * STRIDE];
    let_next_start();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int row = lane / 4, quarter = lane % 4;
    // A gated block takes 8 rows of gates and the 8 of their factors.
    bool is_gated = job.form >= GATE_SILU;
    int outputs = is_gated ? 8 : 16;
    int first = blockIdx.x * outputs;
    int low = min(first + row, job.n - 1);
    int high = is_gated ? low + job.n : min(first + row + 8, job.n - 1);
    const element* w_low = job.w + (size_t)low * job.k;
    const element* w_high = job.w + (size_t)high * job.k;

    int begin = warp * STEP + quarter * 8;
    // Of the warp, so that its threads leave the loop together.
    int turns = max(0, (job.k - warp * STEP + TURN - 1) / TURN);
    uint4 a[STAGES], b[STAGES];
    auto fetch = [&](int stage, int turn) {
        int k = begin + turn * TURN;
        a[stage] = b[stage] = make_uint4(0, 0, 0, 0);
        if (k < job.k) {
            a[stage] = load_once(w_low + k);
            b[stage] = load_once(w_high + k);
        }
    };
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) fetch(stage, stage);
    wait_for_previous();

    float sums[TILES][4] = {};
    for (int turn = 0; turn < turns; turn += STAGES) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            int k = begin + (turn + stage) * TURN;
            bool is_inside = k < job.k;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint4 x = make_uint4(0, 0, 0, 0);
                int token = tile * 8 + row;
                if (is_inside && token < job.m) {
                    x = *reinterpret_cast<const uint4*>(job.x + (size_t)token * job.k + k);
                }
                multiply(sums[tile], a[stage].x, b[stage].x, a[stage].y, b[stage].y, x.x, x.y);
                multiply(sums[tile], a[stage].z, b[stage].z, a[stage].w, b[stage].w, x.z, x.w);
            }
            fetch(stage, turn + stage + STAGES);
        }
    }

#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        float* to = &partial[warp][(tile * 8 + quarter * 2) * STRIDE + row];
        to[0] = sums[tile][0];
        to[STRIDE] = sums[tile][1];
        to[8] = sums[tile][2];
        to[STRIDE + 8] = sums[tile][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * outputs; i += WARPS * 32) {
        int token = i / outputs, output = i % outputs;
        if (token >= job.m || first + output >= job.n) continue;
        float sum = 0.0f, up = 0.0f;
#pragma unroll
        for (int from = 0; from < WARPS; from++) {
            sum += partial[from][token * STRIDE + output];
            if (is_gated) up += partial[from][token * STRIDE + output + 8];
        }
        finish(job, first + output, token, sum, up);
    }
}

}  // namespace

// Two blocks must fit on a multiprocessor.
#define GEMV(NAME, TILES)                                                                                    \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)                                              \
        NAME(const element* x, const element* w, void* out, int m, int n, int k, int form) {                 \
        product<TILES>(Job{x, w, out, m, n, k, form});                                                       \
    }

GEMV(gemv_8, 1)
GEMV(gemv_16, 2)
