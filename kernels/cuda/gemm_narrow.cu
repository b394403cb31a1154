// out[m][n] = sum over k of x[m][k] * w[n][k], for up to 128 rows of x, for Hopper
// (sm_90a): reads the weights once, at the rate of memory. In elements, or in e4m3 with a
// scale for each row of x and of w, by which the sums are multiplied.
//
// Turned round, weights are the tall operand: a CTA makes 64 or 128 outputs for all rows
// of x. One thread keeps the copy engine busy with tiles of 64 k, many stages deep; a
// warpgroup for each 64 outputs multiplies. Where that would leave multiprocessors
// without work, a cluster of CTAs shares out k, and adds up its sums through shared
// memory in the order of its ranks.
//
// In elements a CTA has a multiprocessor to itself: one that asks for 18 tiles of the same
// rows at once reads faster than two that ask for 8 each (32 rows of an 8B model, the four
// products of a layer: 153 and 161 us on an H100). In e4m3 two share it, as one multiplies
// while the other adds.
//
// The first stages of weights are asked for before the kernel waits for the one before
// it, as weights are constant: memory stays busy from one kernel to the next, and while
// small kernels run between two products. Weights are the first to leave L2.
//
// How k is shared out depends on the weights alone, so a row's results are the same bits
// whatever other rows are there.
//
// The tensor cores keep some fourteen bits of sums of e4m3: each stage is summed up there
// alone, and added to the others in f32.
//
// Moves n * k elements from memory; x comes from L2, once for each tile of outputs.
#include "fp8_hopper.cuh"

using namespace attention;

namespace {

// What happens to the sums.
enum Form { STORE, STORE_F32, ADD, GATE_SILU, GATE_GELU };

constexpr int GROUP = 128; // threads of a warpgroup
constexpr int GROUP_ROWS = 64; // outputs of one

// Floats of a row of sums: rows begin in different banks.
template <int GROUPS>
constexpr int SUMS = GROUPS * GROUP_ROWS + 4;

struct Job {
    void* out;
    const float* w_scales; // [n] and [m], of e4m3
    const float* x_scales;
    int m, n, k, form;
    int shares; // of k: CTAs of a cluster
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Elements of k in a stage: a swizzled row of 128 bytes.
template <class T>
constexpr int PANEL = 128 / sizeof(T);

template <class T>
constexpr bool IS_SCALED = sizeof(T) == 1;

template <class T, int GROUPS, int TOKENS, int STAGES>
struct alignas(1024) Shared {
    union {
        struct {
            T weights[STAGES][GROUPS][GROUP_ROWS * PANEL<T>];
            T x[STAGES][TOKENS * PANEL<T>];
        };
        float sums[TOKENS * SUMS<GROUPS>]; // once all products are done
    };
    Barrier full[STAGES], free[STAGES];
};

__device__ __forceinline__ uint64_t first_to_leave() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void load_weights(const TensorMap& map, void* to, Barrier& barrier, int k, int row,
                                             uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(k), "r"(row), "r"(shared_address(&barrier)), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void load_rows(const TensorMap& map, void* to, Barrier& barrier, int k) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(k), "r"(0), "r"(shared_address(&barrier)) : "memory");
}

// Four floats at the same place of another CTA's shared memory.
__device__ __forceinline__ float4 load_of(const float* from, int rank) {
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(from)), "r"(rank));
    float4 value;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w) : "r"(address) : "memory");
    return value;
}

// The stages of k that a CTA takes, and the outputs it makes.
struct Part {
    int rank, first, count;
    int low, high, outputs; // first output of each warpgroup, and how many are written

    __device__ __forceinline__ Part(const Job& job, int groups, int panel) {
        rank = blockIdx.x % job.shares;
        const int stages = (job.k + panel - 1) / panel, tile = blockIdx.x / job.shares;
        first = rank * stages / job.shares;
        count = (rank + 1) * stages / job.shares - first;
        // A gated CTA makes gates and what they gate.
        const bool gated = job.form >= GATE_SILU;
        outputs = gated ? GROUP_ROWS : groups * GROUP_ROWS;
        low = tile * outputs;
        high = gated ? job.n + low : low + GROUP_ROWS;
    }
};

template <class T, int GROUPS, int TOKENS, int STAGES>
__device__ __forceinline__ void copy(const TensorMap& w, const TensorMap& x,
                                     Shared<T, GROUPS, TOKENS, STAGES>& shared, const Part& part) {
    constexpr int BYTES = (GROUPS * GROUP_ROWS + TOKENS) * 128;
    const uint64_t policy = first_to_leave();
    auto weights = [&](int at, int stage) {
        shared.full[stage].arrive_and_expect(BYTES);
        const int k = (part.first + at) * PANEL<T>;
        load_weights(w, shared.weights[stage][0], shared.full[stage], k, part.low, policy);
        if (GROUPS == 2) load_weights(w, shared.weights[stage][GROUPS - 1], shared.full[stage], k, part.high, policy);
    };
    auto rows = [&](int at, int stage) {
        load_rows(x, shared.x[stage], shared.full[stage], (part.first + at) * PANEL<T>);
    };
    const int ahead = min(part.count, STAGES);
    for (int at = 0; at < ahead; at++) weights(at, at);
    wait_for_previous();
    for (int at = 0; at < ahead; at++) rows(at, at);
    Stage<STAGES> stage;
    for (int at = STAGES; at < part.count; at++) {
        shared.free[stage.index].wait(stage.parity);
        weights(at, stage.index);
        rows(at, stage.index);
        stage.next();
    }
    // Not earlier: what the next kernel asks for ahead shall come when memory would fall idle.
    let_next_start();
}

// A warpgroup's 64 outputs, summed over the CTA's part of k.
template <class T, int GROUPS, int TOKENS, int STAGES>
__device__ __forceinline__ void multiply_all(float (&sums)[TOKENS / 2], Shared<T, GROUPS, TOKENS, STAGES>& shared,
                                             int group, int count) {
    Stage<STAGES> stage;
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sums[i] = 0.0f;
    hold(sums);
    for (int at = 0, before = 0; at < count; at++) {
        shared.full[stage.index].wait(stage.parity);
        const uint64_t a = descriptor(shared.weights[stage.index][group], 16);
        const uint64_t b = descriptor(shared.x[stage.index], 16);
        if constexpr (IS_SCALED<T>) {
            float some[TOKENS / 2];
            hold(some);
            begin_products();
#pragma unroll
            for (int i = 0; i < 4; i++) product_e4m3(some, a + further(32 * i), b + further(32 * i), i > 0);
            commit_products();
            wait_products<0>();
            hold(some);
            if (threadIdx.x % 32 == 0) shared.free[stage.index].arrive();
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) sums[i] += some[i];
        } else {
            begin_products();
#pragma unroll
            for (int i = 0; i < 4; i++) product(sums, a + further(32 * i), b + further(32 * i), true);
            commit_products();
            wait_products<1>(); // those of the stage before
            if (at > 0 && threadIdx.x % 32 == 0) shared.free[before].arrive();
            before = stage.index;
        }
        stage.next();
    }
    wait_products<0>();
    hold(sums);
}

__device__ __forceinline__ float4 scaled(float4 sum, float4 scales, float scale) {
    return make_float4(sum.x * (scales.x * scale), sum.y * (scales.y * scale), sum.z * (scales.z * scale),
                       sum.w * (scales.w * scale));
}

// Writes four outputs of a row.
__device__ __forceinline__ void finish(const Job& job, int token, int output, float4 sum, float4 up) {
    const size_t at = (size_t)token * job.n + output;
    if (job.form == STORE_F32) {
        *reinterpret_cast<float4*>(static_cast<float*>(job.out) + at) = sum;
        return;
    }
    uint2* to = reinterpret_cast<uint2*>(static_cast<element*>(job.out) + at);
    if (job.form == ADD) {
        const uint2 before = *to;
        const float2 low = to_floats(reinterpret_cast<const element2&>(before.x));
        const float2 high = to_floats(reinterpret_cast<const element2&>(before.y));
        sum = make_float4(sum.x + low.x, sum.y + low.y, sum.z + high.x, sum.w + high.y);
    } else if (job.form == GATE_SILU) {
        sum = make_float4(silu(sum.x) * up.x, silu(sum.y) * up.y, silu(sum.z) * up.z, silu(sum.w) * up.w);
    } else if (job.form == GATE_GELU) {
        sum = make_float4(gelu_tanh(sum.x) * up.x, gelu_tanh(sum.y) * up.y, gelu_tanh(sum.z) * up.z,
                          gelu_tanh(sum.w) * up.w);
    }
    *to = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
}

// Adds up the sums of a cluster for this CTA's share of the tile, and writes them.
template <class T, int GROUPS>
__device__ __forceinline__ void write(const Job& job, const Part& part, const float* sums) {
    const int vectors = part.outputs / 4, items = job.m * vectors;
    const int begin = (int)((long long)part.rank * items / job.shares);
    const int end = (int)((long long)(part.rank + 1) * items / job.shares);
    for (int item = begin + threadIdx.x; item < end; item += GROUPS * GROUP) {
        const int token = item / vectors, at = item % vectors * 4;
        if (part.low + at >= job.n) continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f), up = sum;
        for (int rank = 0; rank < job.shares; rank++) {
            const float* from = sums + token * SUMS<GROUPS> + at;
            const float4 more = load_of(from, rank);
            sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            if (job.form >= GATE_SILU) {
                const float4 gated = load_of(from + GROUP_ROWS, rank);
                up.x += gated.x, up.y += gated.y, up.z += gated.z, up.w += gated.w;
            }
        }
        if constexpr (IS_SCALED<T>) {
            const float4* scales = reinterpret_cast<const float4*>(job.w_scales + part.low + at);
            const float scale = job.x_scales[token];
            sum = scaled(sum, *scales, scale);
            if (job.form >= GATE_SILU) up = scaled(up, scales[job.n / 4], scale);
        }
        finish(job, token, part.low + at, sum, up);
    }
}

template <class T, int GROUPS, int TOKENS, int STAGES>
__device__ __forceinline__ void narrow(const TensorMap& w, const TensorMap& x, const Job& job) {
    extern __shared__ unsigned char memory[];
    const uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
    auto& shared = *reinterpret_cast<Shared<T, GROUPS, TOKENS, STAGES>*>(memory + (aligned - shared_address(memory)));
    const Part part(job, GROUPS, PANEL<T>);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) shared.full[stage].init(1), shared.free[stage].init(GROUPS * 4);
        publish_to_async_units();
    }
    __syncthreads();
    const int group = threadIdx.x / GROUP, thread = threadIdx.x % GROUP;
    if (group == GROUPS) {
        if (thread == 0) copy(w, x, shared, part);
        __syncwarp();
    } else {
        float sums[TOKENS / 2];
        multiply_all(sums, shared, group, part.count);
        // All have read all stages, which the sums now overwrite.
        named_sync(1, GROUPS * GROUP);
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++) {
            const int token = i / 4 * 8 + thread % 4 * 2 + i % 2;
            const int row = group * GROUP_ROWS + thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            shared.sums[token * SUMS<GROUPS> + row] = sums[i];
        }
    }
    cluster_sync();
    // Also for those that asked for nothing: they write what the kernel before read.
    wait_for_previous();
    if (group < GROUPS) write<T, GROUPS>(job, part, shared.sums);
    // Nobody leaves while others read from it.
    cluster_sync();
}

#else

template <class T, int GROUPS, int TOKENS, int STAGES>
__device__ void narrow(const TensorMap&, const TensorMap&, const Job&) {} // never launched

#endif

} // namespace

// Warpgroups, rows of x, stages, and CTAs that fit on a multiprocessor.
#define KERNEL(NAME, T, GROUPS, TOKENS, STAGES, CTAS)                                                        \
    extern "C" __global__ void __launch_bounds__(GROUPS * GROUP + 32, CTAS)                                  \
    NAME(const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x,                           \
         const __grid_constant__ Job job) {                                                                  \
        narrow<T, GROUPS, TOKENS, STAGES>(w, x, job);                                                        \
    }
#define ELEMENTS(GROUPS, TOKENS, STAGES)                                                                     \
    KERNEL(gemm_narrow_##GROUPS##_##TOKENS, element, GROUPS, TOKENS, STAGES, 1)
#define SCALED(GROUPS, TOKENS, STAGES, CTAS)                                                                 \
    KERNEL(gemm_narrow_##GROUPS##_##TOKENS##_e4m3, e4m3, GROUPS, TOKENS, STAGES, CTAS)

ELEMENTS(1, 8, 24)
ELEMENTS(1, 16, 22)
ELEMENTS(1, 32, 18)
ELEMENTS(1, 64, 13)
ELEMENTS(1, 128, 9)
ELEMENTS(2, 8, 10)
ELEMENTS(2, 16, 9)
ELEMENTS(2, 32, 7)
ELEMENTS(2, 64, 7)
ELEMENTS(2, 128, 5)
SCALED(1, 8, 10, 2)
SCALED(1, 16, 8, 2)
SCALED(1, 32, 8, 2)
SCALED(1, 64, 8, 1)
SCALED(1, 128, 6, 1)
SCALED(2, 8, 6, 2)
SCALED(2, 16, 5, 2)
SCALED(2, 32, 5, 2)
SCALED(2, 64, 4, 2)
SCALED(2, 128, 3, 1)
