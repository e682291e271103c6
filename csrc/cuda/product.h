#pragma once
#include "ptx.h"
#include "rows.h"

// Matrix products on tensor cores, out [M, N] = a [M, K] * b [N, K]^T with fp32 sums: what a block of threads does with
// operands in shared memory. Their rows are cut into chunks of 16 bytes, 8 values, whose places are exchanged so that
// neither copies, ldmatrix nor the results' way out meet a bank conflict.
namespace pysora::cuda {

constexpr int kThreads = 128;  // of a block
constexpr int kChunk = 8;      // values of 16 bits in 16 bytes
constexpr int kStages = 3;     // operands of so many steps are in shared memory: one in use, the others on their way

// The byte at which a chunk of a row lies, in rows of kChunks chunks. Eight rows' chunks of one index, and eight chunks
// in memory's order, lie in different banks. Source of the idea: the exclusive-or layouts of CUTLASS.
template <int kChunks>
__device__ __forceinline__ int place(int row, int chunk) {
  constexpr unsigned kFactor = kChunks & -kChunks, kCycle = kFactor < 8 ? kFactor : 8;
  const unsigned turn = static_cast<unsigned>(row) / (8 / kCycle) % kCycle;
  return (row * kChunks + static_cast<int>(static_cast<unsigned>(chunk) ^ turn)) * 16;
}

// Eight values, `stride` elements apart, of which `count` exist; the others are 0.
template <class T>
__device__ uint4 gather(const T* from, std::int64_t stride, int count) {
  const auto* bits = reinterpret_cast<const unsigned short*>(from);
  std::uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t low = 2 * i < count ? bits[2 * i * stride] : 0;
    const std::uint32_t high = 2 * i + 1 < count ? bits[(2 * i + 1) * stride] : 0;
    word[i] = low | high << 16;
  }
  return {word[0], word[1], word[2], word[3]};
}

// Puts a chunk into shared memory: 16 bytes that arrive later, or values picked one by one.
template <class T>
__device__ __forceinline__ void fetch(unsigned char* to, const T* from, std::int64_t stride, int count, bool wide) {
  if (wide) {
    copy_async(shared_address(to), from, count > 0 ? 16 : 0);
  } else {
    *reinterpret_cast<uint4*>(to) = gather(from, stride, count);
  }
}

// Calls body(i) for each i below count, a share of them in each thread; warps stay together.
template <class Body>
__device__ __forceinline__ void share(int count, const Body& body) {
#pragma unroll 1
  for (int first = 0; first < count; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (i < count) body(i);
  }
}

// Keeps kStages - 1 steps on their way while one is worked on. fetch(step) starts copies, ready(step) may change what
// this thread has fetched, work(step) reads what all have.
template <class Fetch, class Ready, class Work>
__device__ __forceinline__ void pipeline(int steps, const Fetch& fetch, const Ready& ready, const Work& work) {
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) fetch(step);
    copy_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copy_wait<kStages - 2>();
    ready(step);
    __syncthreads();  // all has arrived, and nobody reads the stage that is filled next
    if (step + kStages - 1 < steps) fetch(step + kStages - 1);
    copy_commit();
    work(step);
  }
}

// The sums of a block's kBlockM rows and kBlockN columns, held by kWarpsM x kWarpsN warps.
template <class T, int kBlockM, int kBlockN, int kWarpsM, int kWarpsN>
class Product {
 public:
  static_assert(kWarpsM * kWarpsN * 32 == kThreads);
  static constexpr int kM = kBlockM / kWarpsM / 16, kN = kBlockN / kWarpsN / 16;  // tiles of 16 x 16 of a warp
  static constexpr int kRoom = kBlockM * kBlockN * 2;                             // bytes that `keep` fills
  static constexpr int kRowChunks = kBlockN / kChunk;

  __device__ Product()
      : lane_(threadIdx.x % 32),
        row_(threadIdx.x / 32 / kWarpsN * (kM * 16)),
        column_(threadIdx.x / 32 % kWarpsN * (kN * 16)) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
      for (int j = 0; j < 2 * kN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[i][j][e] = 0.0f;
  }

  // What this lane addresses for ldmatrix: the row inside tile i of a, the row of tile 0 of b, the chunks of either.
  __device__ __forceinline__ int a_row(int i) const { return row_ + 16 * i + lane_ % 16; }
  __device__ __forceinline__ int a_chunk() const { return lane_ / 16; }
  __device__ __forceinline__ int b_row() const { return column_ + lane_ % 8 + lane_ / 16 * 8; }
  __device__ __forceinline__ int b_chunk() const { return lane_ / 8 % 2; }

  // 16 more values of K; a(i) and b(j) are the addresses of this lane's rows of the tiles.
  template <class A, class B>
  __device__ __forceinline__ void step(const A& a, const B& b) {
    std::uint32_t rows[kM][4];
#pragma unroll
    for (int i = 0; i < kM; ++i) load_matrices(rows[i], a(i));
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      std::uint32_t columns[4];
      load_matrices(columns, b(j));
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        mma<T>(sum_[i][2 * j], rows[i], columns[0], columns[1]);
        mma<T>(sum_[i][2 * j + 1], rows[i], columns[2], columns[3]);
      }
    }
  }

  // Rounds the sums into `room`, rows of kBlockN values; finish(column, word, sums) takes a pair of sums, its first
  // column and the word that the room holds at its place, and adds to the sums what is missing.
  template <class Finish>
  __device__ __forceinline__ void keep(unsigned char* room, const Finish& finish) const {
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int j = 0; j < 2 * kN; ++j) {
      const int column = column_ + 8 * j;
#pragma unroll
      for (int i = 0; i < kM; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = row_ + 16 * i + 8 * h + g;
          auto* word = reinterpret_cast<std::uint32_t*>(room + place<kRowChunks>(row, column / kChunk)) + t;
          float2 sums = make_float2(sum_[i][j][2 * h], sum_[i][j][2 * h + 1]);
          finish(column + 2 * t, *word, sums);
          *word = pack<T>(sums.x, sums.y);
        }
    }
  }

  // Calls body(row, chunk, place in the room) for every chunk of the room, a share of them in each thread.
  template <class Body>
  __device__ __forceinline__ static void each_chunk(unsigned char* room, const Body& body) {
    for (int i = threadIdx.x; i < kBlockM * kRowChunks; i += kThreads) {
      const int row = i / kRowChunks, chunk = i % kRowChunks;
      body(row, chunk, reinterpret_cast<uint4*>(room + place<kRowChunks>(row, chunk)));
    }
  }

 private:
  float sum_[kM][2 * kN][4];
  int lane_, row_, column_;
};

// Writes the first `count` values of a chunk, `stride` elements apart.
template <class T>
__device__ __forceinline__ void put(T* to, std::int64_t stride, int count, bool wide, uint4 chunk) {
  if (wide) {
    if (count > 0) store_wide(to, chunk);
    return;
  }
  auto* bits = reinterpret_cast<unsigned short*>(to);
  const std::uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (i < count) bits[i * stride] = static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16));
  }
}

}  // namespace pysora::cuda
