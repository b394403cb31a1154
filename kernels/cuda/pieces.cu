// Frames of pages: many pieces of memory copied by one launch, and a check word
// of what was copied.
//
//   copy_pieces  a block copies 32 KiB of one piece, 64 bytes a thread under way at
//                once. Gathers pages into a frame and scatters a frame into pages
//                alike. Pieces are parameters: a list in the machine's memory would
//                be waited for before the first byte moves.
//
// The check word is the sum over all 32-bit words of the frame, each mixed with
// its place: it is the same in any order of blocks and threads, and costs
// arithmetic only, which copying leaves idle. The last block hands it to the host,
// with the turn of the launch: the host sees the end without an event.
// Traffic: the frame is read once and written once. Reads are marked as not to
// be kept, so that a frame just gathered stays in L2 for whoever scatters it.
#include "common.cuh"

// Addresses are multiples of 4.
struct Piece {
    unsigned long long from, to;
    // Place in the frame and size, in words of 32 bits.
    unsigned int at, words;
};

// As many as fit into 4 KiB of parameters, and as `MOST` says in kernels/src/cuda/pieces.rs.
struct List {
    Piece pieces[168];
};

// A block's share: once round for 512 threads of four times 16 bytes.
constexpr unsigned int BLOCK_WORDS = 8192;

// What a frame's blocks have done together; zero between frames.
struct Progress {
    unsigned int sum, blocks;
};

__device__ __forceinline__ unsigned int mix(unsigned int word, unsigned int place) {
    unsigned int x = word + place * 0x9e3779b9u + 0x7f4a7c15u;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

__device__ __forceinline__ unsigned int mix4(int4 words, unsigned int place) {
    return mix(words.x, place) + mix(words.y, place + 1) + mix(words.z, place + 2) + mix(words.w, place + 3);
}

template <bool CHECKED>
__device__ __forceinline__ unsigned int copy(const Piece& piece) {
    unsigned int sum = 0, first = blockIdx.x * BLOCK_WORDS;
    if (first >= piece.words) return sum;
    unsigned long long source = piece.from + 4ull * first, target = piece.to + 4ull * first;
    unsigned int place = piece.at + first, words = min(BLOCK_WORDS, piece.words - first);
    if ((source | target | 4 * words) % 16 == 0) {
        const int4* from = reinterpret_cast<const int4*>(source);
        int4* to = reinterpret_cast<int4*>(target);
        int count = (int)words / 4, i = threadIdx.x;
        for (; i + 3 * (int)blockDim.x < count; i += 4 * blockDim.x) {
            int4 parts[4];
#pragma unroll
            for (int j = 0; j < 4; j++) parts[j] = __ldcs(from + i + j * blockDim.x);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                to[i + j * blockDim.x] = parts[j];
                if (CHECKED) sum += mix4(parts[j], place + 4 * (i + j * blockDim.x));
            }
        }
        for (; i < count; i += blockDim.x) {
            int4 part = __ldcs(from + i);
            to[i] = part;
            if (CHECKED) sum += mix4(part, place + 4 * i);
        }
    } else {
        const int* from = reinterpret_cast<const int*>(source);
        int* to = reinterpret_cast<int*>(target);
        for (int i = threadIdx.x; i < (int)words; i += blockDim.x) {
            int word = __ldcs(from + i);
            to[i] = word;
            if (CHECKED) sum += mix(word, place + i);
        }
    }
    return sum;
}

// Tells the host, with the last of a frame's blocks, that everything is written. The fences
// make it so for whoever has read the report, another process's kernels included.
template <bool CHECKED>
__device__ __forceinline__ void tell(
    unsigned int sum, Progress* progress, volatile unsigned long long* report, int turn, unsigned int blocks
) {
    __shared__ unsigned int sums[32];
    if (CHECKED) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (CHECKED) {
        for (int warp = 1; warp < blockDim.x / 32; warp++) sum += sums[warp];
        atomicAdd(&progress->sum, sum);
    }
    __threadfence();
    if (atomicAdd(&progress->blocks, 1) == blocks - 1) {
        __threadfence_system();
        unsigned int check = atomicExch(&progress->sum, 0);
        progress->blocks = 0;
        *report = (unsigned long long)(unsigned int)turn << 32 | check;
    }
}

extern "C" __global__ void copy_pieces(
    const __grid_constant__ List list, Progress* progress, unsigned long long* report, int turn, unsigned int blocks
) {
    let_next_start();
    wait_for_previous();
    copy<false>(list.pieces[blockIdx.y]);
    tell<false>(0, progress, report, turn, blocks);
}

extern "C" __global__ void copy_pieces_checked(
    const __grid_constant__ List list, Progress* progress, unsigned long long* report, int turn, unsigned int blocks
) {
    let_next_start();
    wait_for_previous();
    tell<true>(copy<true>(list.pieces[blockIdx.y]), progress, report, turn, blocks);
}
