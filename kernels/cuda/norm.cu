// Root mean square norms of rows, fused with the residual stream's sum.
//
//   rms_norm      out = norm(x); rms_norm_short where a thread holds one vector of a row:
//                 in fewer registers, so that a multiprocessor has more rows under way
//   add_rms_norm  x += delta, out = norm(x)
//   norm_add      x += norm(delta)             (models that norm before the sum)
//   head_norm     each head of some columns of a row by itself, in place
//   part_norm     some columns of a row together, in place
//
// One block a row; the row stays in registers between the two passes (up to MOST vectors
// a thread), so memory is read once: 4, 8 and 6 bytes an element. A short row's weights are
// asked for before the kernel waits for the one before it: they are constant.
// Sums are of the rounded values that are stored.
#include "element.cuh"

namespace {

// Vectors of 8 elements a thread can hold.
constexpr int MOST_VECTORS = 4;

enum class Form { plain, add, after };

template <Form FORM, int MOST>
__device__ __forceinline__ void norm_row(element* x, const element* delta, const element* weight,
                         element* out, int width, float eps) {
    __shared__ float sums[32];
    let_next_start();
    size_t row = (size_t)blockIdx.x * width;
    element8 early;
    if (MOST == 1 && threadIdx.x * 8 < width) early = load8(weight + threadIdx.x * 8);
    wait_for_previous();

    float held[MOST][8];
    float squares = 0.0f;
#pragma unroll
    for (int turn = 0; turn < MOST; turn++) {
        int i = (turn * blockDim.x + threadIdx.x) * 8;
        if (i >= width) break;
        float(&mine)[8] = held[turn];
        unpack(load8((FORM == Form::after ? delta : x) + row + i), mine);
        if (FORM == Form::add) {
            float more[8];
            unpack(load8(delta + row + i), more);
#pragma unroll
            for (int j = 0; j < 8; j++) mine[j] += more[j];
            element8 rounded = pack(mine);
            store8(x + row + i, rounded);
            unpack(rounded, mine);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) squares += mine[j] * mine[j];
    }
    float scale = rsqrtf(block_sum(squares, sums) / width + eps);
#pragma unroll
    for (int turn = 0; turn < MOST; turn++) {
        int i = (turn * blockDim.x + threadIdx.x) * 8;
        if (i >= width) break;
        float(&mine)[8] = held[turn];
        float factor[8];
        unpack(MOST == 1 ? early : load8(weight + i), factor);
#pragma unroll
        for (int j = 0; j < 8; j++) mine[j] *= scale * factor[j];
        if (FORM == Form::after) {
            float sum[8];
            unpack(load8(x + row + i), sum);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += mine[j];
            store8(x + row + i, pack(sum));
        } else {
            store8(out + row + i, pack(mine));
        }
    }
}

// Short rows that a multiprocessor has under way, a block of 512 each: those of 8.6 and 8.9 have
// 1,536 threads, others 2,048.
#if __CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900
constexpr int SHORT_ROWS = 3;
#else
constexpr int SHORT_ROWS = 4;
#endif

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(const element* x, const element* weight, element* out, int width, float eps) {
    norm_row<Form::plain, MOST_VECTORS>(const_cast<element*>(x), nullptr, weight, out, width, eps);
}

extern "C" __global__ void __launch_bounds__(512, SHORT_ROWS)
    rms_norm_short(const element* x, const element* weight, element* out, int width, float eps) {
    norm_row<Form::plain, 1>(const_cast<element*>(x), nullptr, weight, out, width, eps);
}

extern "C" __global__ void __launch_bounds__(1024)
    add_rms_norm(element* x, const element* delta, const element* weight, element* out,
                 int width, float eps) {
    norm_row<Form::add, MOST_VECTORS>(x, delta, weight, out, width, eps);
}

extern "C" __global__ void __launch_bounds__(1024)
    norm_add(element* x, const element* delta, const element* weight, int width, float eps) {
    norm_row<Form::after, MOST_VECTORS>(x, delta, weight, nullptr, width, eps);
}

// One warp a head: blockIdx.x is the row, warps go over heads. The first head
// begins at `start` in its row, rows are `stride` apart.
extern "C" __global__ void head_norm(element* x, const element* weight, int start, int heads,
                                     int head_dim, int stride, float eps) {
    let_next_start();
    wait_for_previous();
    int lane = threadIdx.x % 32;
    for (int head = threadIdx.x / 32; head < heads; head += blockDim.x / 32) {
        element* mine = x + (size_t)blockIdx.x * stride + start + head * head_dim;
        float squares = 0.0f;
        for (int i = lane; i < head_dim; i += 32) {
            float value = to_float(mine[i]);
            squares += value * value;
        }
        float scale = rsqrtf(warp_sum(squares) / head_dim + eps);
        for (int i = lane; i < head_dim; i += 32) {
            mine[i] = to_element(to_float(mine[i]) * scale * to_float(weight[i]));
        }
    }
}

// The block goes over its columns twice: they are still in L1 then.
extern "C" __global__ void __launch_bounds__(512)
    part_norm(element* x, const element* weight, int start, int width, int stride, float eps) {
    __shared__ float sums[32];
    let_next_start();
    wait_for_previous();
    element* mine = x + (size_t)blockIdx.x * stride + start;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = to_float(mine[i]);
        squares += value * value;
    }
    const float scale = rsqrtf(block_sum(squares, sums) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        mine[i] = to_element(to_float(mine[i]) * scale * to_float(weight[i]));
    }
}
