// out[m][n] = sum over k of x[m][k] * w[n][k], for many rows of x, for Hopper (sm_90a): at
// the rate of the tensor cores. Or out = act(gates) * ups, where w has the rows of the
// gates and then those of the ups: their sums are never written.
//
// A CTA makes 256 outputs (128 gates and what they gate) of 128 rows: one thread keeps the
// copy engine busy with stages of 64 k, two warpgroups of 64 rows each multiply. Two CTAs
// of a cluster take neighbouring rows of the same outputs: each asks for half of the
// weights, which the copy engine writes to both. CTAs stay, and take one tile after
// another, so that the first stages of the next tile are there when the last is written.
//
// Tiles go down a band of rows, then to the next outputs: the band's rows stay in L2, and
// weights come from memory once for each band.
//
// How sums are made does not depend on the number of rows: a row's results are the same
// bits whatever other rows are there.
//
// Memory traffic: w once for each band of rows, x and out once. From L2 to a CTA 32 KB a
// stage, for 4.2 million multiplications and additions.
#include "attention_hopper.cuh"

using namespace attention;

namespace {

// What happens to the sums.
enum class Form { store, add, silu, gelu };

constexpr int GROUPS = 2;  // warpgroups that multiply
constexpr int GROUP = 128; // threads of one

struct Job {
    element* out;
    int m, n, k;
    int band; // rows of tiles of a cluster that are taken together
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr bool is_gated(Form form) { return form == Form::silu || form == Form::gelu; }

constexpr int GROUP_ROWS = 64; // rows of x of a warpgroup
constexpr int CTAS = 2;        // of a cluster
constexpr int PANEL = 64;      // elements of k in a stage: a swizzled row
constexpr int STAGES = 4;
constexpr int ROWS = GROUPS * GROUP_ROWS;
constexpr int HALF = 128; // rows of w that a CTA asks for

struct alignas(1024) Shared {
    element x[STAGES][ROWS * PANEL];
    element weights[STAGES][CTAS * HALF * PANEL];
    Barrier full[STAGES], free[STAGES];
};

// The tiles of a cluster, one after another.
template <Form FORM>
struct Tile {
    const Job& job;
    int at = (int)blockIdx.x / CTAS;
    int row, output; // the first of this CTA

    __device__ __forceinline__ bool next() {
        constexpr int OUTPUTS = is_gated(FORM) ? HALF : CTAS * HALF;
        const int pairs = (job.m + CTAS * ROWS - 1) / (CTAS * ROWS), columns = (job.n + OUTPUTS - 1) / OUTPUTS;
        if (at >= pairs * columns) return false;
        const int band = at / (job.band * columns), in_band = at % (job.band * columns);
        const int height = min(job.band, pairs - band * job.band);
        row = ((band * job.band + in_band % height) * CTAS + (int)blockIdx.x % CTAS) * ROWS;
        output = in_band / height * OUTPUTS;
        at += gridDim.x / CTAS;
        return true;
    }
};

__device__ __forceinline__ void load(const TensorMap& map, element* to, Barrier& barrier, int k, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(k), "r"(row), "r"(shared_address(&barrier)) : "memory");
}

// To the same place of every CTA of the cluster, whose barriers count it.
__device__ __forceinline__ void load_for_all(const TensorMap& map, element* to, Barrier& barrier, int k, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(k), "r"(row), "r"(shared_address(&barrier)),
                 "h"((uint16_t)((1 << CTAS) - 1)) : "memory");
}

__device__ __forceinline__ void arrive_at(Barrier& barrier, int rank) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}"
                 ::"r"(shared_address(&barrier)), "r"(rank) : "memory");
}

template <Form FORM>
__device__ __forceinline__ void copy(const TensorMap& w, const TensorMap& x, Shared& shared, const Job& job) {
    constexpr int BYTES = (ROWS + CTAS * HALF) * PANEL * (int)sizeof(element);
    const int rank = (int)blockIdx.x % CTAS, second = is_gated(FORM) ? job.n : HALF;
    Stage<STAGES> stage;
    for (Tile<FORM> tile{job}; tile.next();) {
        for (int k = 0; k < job.k; k += PANEL) {
            // Free in all CTAs: all are written to.
            shared.free[stage.index].wait(stage.parity ^ 1);
            Barrier& full = shared.full[stage.index];
            full.arrive_and_expect(BYTES);
            load(x, shared.x[stage.index], full, k, tile.row);
            load_for_all(w, shared.weights[stage.index] + rank * HALF * PANEL, full, k, tile.output + rank * second);
            stage.next();
        }
    }
    let_next_start();
}

// Lanes that differ in `distance` swap the second of one and the first of the other.
__device__ __forceinline__ void swap(uint32_t& first, uint32_t& second, int distance) {
    const bool is_second = threadIdx.x & distance;
    const uint32_t other = __shfl_xor_sync(~0u, is_second ? first : second, distance);
    if (is_second) first = other;
    else second = other;
}

// Of four lanes with a pair of columns of each of four blocks of eight, each gets all of
// one block. Its own inverse.
__device__ __forceinline__ void transpose(uint32_t (&pairs)[4]) {
    swap(pairs[0], pairs[1], 1);
    swap(pairs[2], pairs[3], 1);
    swap(pairs[0], pairs[2], 2);
    swap(pairs[1], pairs[3], 2);
}

template <Form FORM>
__device__ __forceinline__ float activated(float x) {
    return FORM == Form::silu ? silu(x) : gelu_tanh(x);
}

// A warpgroup's sums of a tile, sixteen bytes of a row at a time.
template <Form FORM>
__device__ __forceinline__ void write(const Job& job, const float (&sums)[128], int first_row, int first_output) {
    constexpr int BLOCKS = is_gated(FORM) ? 16 : 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first_row + threadIdx.x % GROUP / 32 * 16 + lane / 4 + 8 * half;
        auto place = [&](int block) {
            const int output = first_output + (block + lane % 4) * 8;
            const bool there = row < job.m && output < job.n;
            return there ? reinterpret_cast<uint4*>(job.out + (size_t)row * job.n + output) : nullptr;
        };
        uint4 before[BLOCKS / 4];
        if constexpr (FORM == Form::add) {
#pragma unroll
            for (int block = 0; block < BLOCKS; block += 4) {
                const uint4* from = place(block);
                before[block / 4] = from ? *from : make_uint4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (int block = 0; block < BLOCKS; block += 4) {
            uint32_t pairs[4];
            if constexpr (FORM == Form::add) {
                const uint4& old = before[block / 4];
                pairs[0] = old.x, pairs[1] = old.y, pairs[2] = old.z, pairs[3] = old.w;
                transpose(pairs);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int at = 4 * (block + j) + 2 * half;
                float low = sums[at], high = sums[at + 1];
                if constexpr (is_gated(FORM)) {
                    low = activated<FORM>(low) * sums[64 + at], high = activated<FORM>(high) * sums[65 + at];
                } else if constexpr (FORM == Form::add) {
                    const float2 old = to_floats(reinterpret_cast<const element2&>(pairs[j]));
                    low += old.x, high += old.y;
                }
                pairs[j] = pack(low, high);
            }
            transpose(pairs);
            if (uint4* to = place(block)) *to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

template <Form FORM>
__device__ __forceinline__ void multiply(Shared& shared, const Job& job) {
    // The same in all lanes, as the compiler sees then.
    const int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0), lane = threadIdx.x % 32;
    Stage<STAGES> stage;
    float sums[128];
    for (Tile<FORM> tile{job}; tile.next();) {
        int before = 0;
        // A lane for each CTA that waits for this stage.
        auto free = [&](int index) {
            if (lane < CTAS) arrive_at(shared.free[index], lane);
        };
        for (int k = 0; k < job.k; k += PANEL) {
            shared.full[stage.index].wait(stage.parity);
            const uint64_t a = descriptor(shared.x[stage.index] + group * GROUP_ROWS * PANEL, 16);
            const uint64_t b = descriptor(shared.weights[stage.index], 16);
            hold(sums);
            begin_products();
#pragma unroll
            for (int i = 0; i < 4; i++) product(sums, a + further(32 * i), b + further(32 * i), k + i > 0);
            commit_products();
            wait_products<1>(); // those of the stage before
            if (k > 0) free(before);
            before = stage.index;
            stage.next();
        }
        wait_products<0>();
        hold(sums);
        free(before);
        write<FORM>(job, sums, tile.row + group * GROUP_ROWS, tile.output);
    }
}

template <Form FORM>
__device__ __forceinline__ void wide(const TensorMap& w, const TensorMap& x, const Job& job) {
    extern __shared__ unsigned char memory[];
    const uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
    auto& shared = *reinterpret_cast<Shared*>(memory + (aligned - shared_address(memory)));
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) shared.full[i].init(1), shared.free[i].init(CTAS * GROUPS * 4);
        // For the other CTA's copies too.
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        publish_to_async_units();
    }
    cluster_sync();
    wait_for_previous();
    if (threadIdx.x / GROUP == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(40));
        if (threadIdx.x == GROUPS * GROUP) copy<FORM>(w, x, shared, job);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(232));
        multiply<FORM>(shared, job);
    }
    // Nobody leaves while others write to it.
    cluster_sync();
}

#else

template <Form FORM>
__device__ void wide(const TensorMap&, const TensorMap&, const Job&) {} // never launched

#endif

} // namespace

#define KERNEL(FORM)                                                                                         \
    extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP, 1)                                    \
    gemm_wide_##FORM(const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x,               \
                     const __grid_constant__ Job job) {                                                      \
        wide<Form::FORM>(w, x, job);                                                                         \
    }

KERNEL(store)
KERNEL(add)
KERNEL(silu)
KERNEL(gelu)
