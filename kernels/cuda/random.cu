// out[i] = a number from [-scale, scale), a function of (seed, i) alone: made-up
// weights for benches. Writes 2 bytes an element.
#include "element.cuh"

// The finalizer of splitmix64.
__device__ __forceinline__ unsigned long long mixed(unsigned long long x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

extern "C" __global__ void fill_uniform(element* out, unsigned long long elements, unsigned long long seed,
                                        float scale) {
    let_next_start();
    wait_for_previous();
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += step) {
        float unit = (mixed(seed ^ mixed(i)) >> 40) * (1.0f / (1 << 24));
        out[i] = to_element(scale * (2.0f * unit - 1.0f));
    }
}
