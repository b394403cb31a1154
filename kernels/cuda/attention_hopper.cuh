// Hopper's asynchronous units as functions: barriers that count bytes, the copy
// engine's tiles (TMA), and matrix products of a warpgroup of 128 threads (wgmma).
// Tiles in shared memory are panels of 64 elements a row, 128 bytes, swizzled by 128
// bytes: chunk c of row r lies at chunk c ^ (r % 8). All of it needs sm_90a.
#pragma once

#include "attention_tile.cuh"

namespace attention {

// A CUtensorMap, as the driver encodes it.
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

struct Barrier {
    uint64_t state;

    __device__ __forceinline__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals));
    }

    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
    }

    __device__ __forceinline__ void arrive_and_expect(int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                     ::"r"(shared_address(this)), "r"(bytes) : "memory");
    }

    // Returns when the phase of this parity is over.
    __device__ __forceinline__ void wait(int parity) {
        asm volatile("{\n"
                     ".reg .pred over;\n"
                     "again:\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                     "@over bra done;\n"
                     "bra again;\n"
                     "done:\n"
                     "}" ::"r"(shared_address(this)), "r"(parity) : "memory");
    }
};

// A place in a ring of stages, and the parity of its round.
template <int STAGES>
struct Stage {
    int index = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++index == STAGES) index = 0, parity ^= 1;
    }
};

// Of all threads of a cluster: what one wrote to shared memory, others may read.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Makes this thread's writes to shared memory visible to the asynchronous units.
__device__ __forceinline__ void publish_to_async_units() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void load_box(const TensorMap& map, element* to, Barrier& barrier, int x, int y, int z, int w) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w),
                 "r"(shared_address(&barrier)) : "memory");
}

// Barriers by number among some of a CTA's threads.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// How the tensor cores find a swizzled tile. `panels`: bytes from panel to panel, which
// matters where rows run along the product's inner dimension.
__device__ __forceinline__ uint64_t descriptor(const void* tile, int panels) {
    return (uint64_t)((shared_address(tile) & 0x3ffff) >> 4) | (uint64_t)(panels >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// What a descriptor grows by for so many bytes.
__device__ __forceinline__ uint64_t further(int bytes) { return bytes >> 4; }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving registers that a product under way holds.
template <int N>
__device__ __forceinline__ void hold(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(registers[i])::"memory");
}

#define BATON_SUMS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BATON_SUMS_8(d, i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),              \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define BATON_SUMS_32(d, i)                                                                                  \
    BATON_SUMS_8(d, i), BATON_SUMS_8(d, i + 8), BATON_SUMS_8(d, i + 16), BATON_SUMS_8(d, i + 24)
#define BATON_NAMES_32                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BATON_NAMES_64                                                                                       \
    BATON_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "      \
                   "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define BATON_NAMES_128                                                                                      \
    BATON_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "      \
                   "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "        \
                   "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "        \
                   "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "    \
                   "%124, %125, %126, %127"

// sums[64 x N] (+)= a[64 x 16] * b[16 x N], both in shared memory, inner dimension along
// the rows. A thread of warp w holds rows 16 w + lane / 4 + {0, 8} and columns
// 8 n + lane % 4 * 2 + {0, 1} as sums[4 n + {0, 1}] and sums[4 n + {2, 3}].
__device__ __forceinline__ void product(float (&sums)[128], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." ELEMENT "." ELEMENT " {" BATON_NAMES_128 "}, "
                 "%128, %129, add, 1, 1, 0, 0;\n}"
                 : BATON_SUMS_32(sums, 0), BATON_SUMS_32(sums, 32), BATON_SUMS_32(sums, 64), BATON_SUMS_32(sums, 96)
                 : "l"(a), "l"(b), "r"((int)add));
}

__device__ __forceinline__ void product(float (&sums)[64], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." ELEMENT "." ELEMENT " {" BATON_NAMES_64 "}, "
                 "%64, %65, add, 1, 1, 0, 0;\n}"
                 : BATON_SUMS_32(sums, 0), BATON_SUMS_32(sums, 32)
                 : "l"(a), "l"(b), "r"((int)add));
}

__device__ __forceinline__ void product(float (&sums)[32], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." ELEMENT "." ELEMENT " {" BATON_NAMES_32 "}, "
                 "%32, %33, add, 1, 1, 0, 0;\n}"
                 : BATON_SUMS_32(sums, 0)
                 : "l"(a), "l"(b), "r"((int)add));
}

__device__ __forceinline__ void product(float (&sums)[16], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32." ELEMENT "." ELEMENT " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "%16, %17, add, 1, 1, 0, 0;\n}"
                 : BATON_SUMS_8(sums, 0), BATON_SUMS_8(sums, 8)
                 : "l"(a), "l"(b), "r"((int)add));
}

__device__ __forceinline__ void product(float (&sums)[8], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32." ELEMENT "." ELEMENT " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, add, 1, 1, 0, 0;\n}"
                 : BATON_SUMS_8(sums, 0)
                 : "l"(a), "l"(b), "r"((int)add));
}

__device__ __forceinline__ void product(float (&sums)[4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %6, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32." ELEMENT "." ELEMENT " "
                 "{%0, %1, %2, %3}, %4, %5, add, 1, 1, 0, 0;\n}"
                 : BATON_SUMS_4(sums, 0)
                 : "l"(a), "l"(b), "r"((int)add));
}

// sums[64 x N] += a[64 x 16] * b[16 x N], a in registers, b with columns along the rows.
__device__ __forceinline__ void product(float (&sums)[64], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." ELEMENT "." ELEMENT " {" BATON_NAMES_64 "}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : BATON_SUMS_32(sums, 0), BATON_SUMS_32(sums, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void product(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." ELEMENT "." ELEMENT " {" BATON_NAMES_32 "}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : BATON_SUMS_32(sums, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

} // namespace attention
