#pragma once
#include <cstdint>
#include <type_traits>

#include "ptx.h"
#include "pysora/dtype.h"
#include "pysora/timestep_rows.h"

// Rows of fp32, bf16 or fp16 values: 128-bit accesses, conversions, and sums over the threads that hold a row.
namespace pysora::cuda {

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // values of a 128-bit access

// Calls body(T{}) with the type of a dtype.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
  if (dtype == Dtype::f32) {
    body(float{});
  } else if (dtype == Dtype::bf16) {
    body(Bf16{});
  } else {
    body(F16{});
  }
}

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

inline int size_of(Dtype dtype) {
  return dtype == Dtype::f32 ? 4 : 2;
}

// Whether a pointer, or no data, allows 128-bit accesses.
inline bool aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

// ---- single values ----

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(Bf16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(F16 x) {
  return __half2float(x);
}

__device__ inline void from_float(float x, float& y) {
  y = x;
}
__device__ inline void from_float(float x, Bf16& y) {
  y = __float2bfloat16_rn(x);
}
__device__ inline void from_float(float x, F16& y) {
  y = __float2half_rn(x);
}

// x with the rounding of T.
template <class T>
__device__ float rounded(float x) {
  T y;
  from_float(x, y);
  return to_float(y);
}

// ---- N values side by side; where N is more than 1 they are aligned to 16 bytes, or to their size where it is less
// ----

template <int bytes>
using Word = std::conditional_t<bytes == 16, uint4, std::conditional_t<bytes == 8, uint2, std::uint32_t>>;

template <int N, class T>
__device__ void load(const T* p, float (&v)[N]) {
  constexpr int step = N < kPack<T> ? N : kPack<T>;
#pragma unroll
  for (int i = 0; i < N; i += step) {
    if constexpr (N == 1) {
      v[0] = to_float(*p);
    } else {
      alignas(16) T part[step];
      using Part = Word<step * sizeof(T)>;
      *reinterpret_cast<Part*>(part) = *reinterpret_cast<const Part*>(p + i);
#pragma unroll
      for (int j = 0; j < step; ++j) v[i + j] = to_float(part[j]);
    }
  }
}

template <int N, class T>
__device__ void store(T* p, const float (&v)[N]) {
  constexpr int step = N < kPack<T> ? N : kPack<T>;
#pragma unroll
  for (int i = 0; i < N; i += step) {
    if constexpr (N == 1) {
      from_float(v[0], *p);
    } else {
      alignas(16) T part[step];
      using Part = Word<step * sizeof(T)>;
#pragma unroll
      for (int j = 0; j < step; ++j) from_float(v[i + j], part[j]);
      *reinterpret_cast<Part*>(p + i) = *reinterpret_cast<const Part*>(part);
    }
  }
}

// Elements first to first + N - 1 of values of any dtype; the branch goes the same way in every thread.
template <int N>
__device__ void load(const Values& values, std::int64_t first, float (&v)[N]) {
  if (values.dtype == Dtype::f32) {
    load(static_cast<const float*>(values.data) + first, v);
  } else if (values.dtype == Dtype::bf16) {
    load(static_cast<const Bf16*>(values.data) + first, v);
  } else {
    load(static_cast<const F16*>(values.data) + first, v);
  }
}

// ---- rows of a table, one for each timestep ----

// The row of a token's timestep; -1 where the index names none.
__device__ inline std::int64_t timestep_row(const TimestepRows& rows, unsigned b, unsigned l) {
  const std::int64_t row =
      rows.index ? rows.index[b * rows.index_strides[0] + l * rows.index_strides[1]] : b * rows.per_sample;
  return row < 0 || row >= rows.U ? -1 : row;
}

// As load, by all lanes of a warp in which the values of lane i + 1 follow those of lane i, for i even; `inside` says
// whether a lane has values. Two accesses of four fp32 values each would use half of every sector: instead the lanes of
// a pair access the two halves of one sector, and swap.
template <int N>
__device__ void load_in_pairs(const Values& values, std::int64_t first, bool inside, float (&v)[N]) {
  if constexpr (N == 8) {
    if (values.dtype == Dtype::f32) {
      const bool odd = threadIdx.x % 2, both = __shfl_xor_sync(0xFFFFFFFF, inside, 1);
      const float* p = static_cast<const float*>(values.data) + first;
      float even_part[4] = {}, odd_part[4] = {};
      if (inside) {
        load(odd ? p - 4 : p, even_part);
        load(odd ? p + 4 : both ? p + 8 : p + 4, odd_part);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float swapped = __shfl_xor_sync(0xFFFFFFFF, odd ? even_part[i] : odd_part[i], 1);
        v[i] = odd ? swapped : even_part[i];
        v[i + 4] = odd || !both ? odd_part[i] : swapped;
      }
      return;
    }
  }
  if (inside) load(values, first, v);
}

// ---- a row spread over threads ----

// Each thread holds kHeld values of its row in registers: kHeld / P times P values side by side, in steps of lanes * P,
// so that neighbouring threads access neighbouring memory. P is kPack<T>, or 1 where alignment or strides forbid that.
constexpr int kHeld = 16;
constexpr int kMostLanes = 1024;
constexpr std::int64_t kMostRow = std::int64_t{kHeld} * kMostLanes;  // values of the longest row

struct RowShape {
  int lanes;  // threads of a row: a power of two up to 32, else whole warps
  int rows;   // of a block
  int block() const { return lanes * rows; }
};

// For rows of D values, D at most kMostRow.
inline RowShape row_shape(std::int64_t D, int least_lanes = 1) {
  const int threads = static_cast<int>(ceil_div(D, kHeld));
  if (threads > 32) return {static_cast<int>(ceil_div(threads, 32)) * 32, 1};
  int lanes = least_lanes;
  while (lanes < threads) lanes *= 2;
  return {lanes, 128 / lanes};
}

// Blocks of a launch whose blocks go through rows in steps of the grid: enough to fill any card several times.
constexpr std::int64_t kMostBlocks = 1 << 13;

inline unsigned row_blocks(std::int64_t rows, RowShape shape) {
  const std::int64_t blocks = ceil_div(rows, shape.rows);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

__device__ inline float warp_sum(float x, int lanes = 32) {
  for (int i = lanes / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, i);
  return x;
}

// Sums over the threads of a row, known to all of them. Every thread of the block takes part, with 0 where it holds
// nothing. A sum uses the half of `partial` that the last one did not use: one barrier is enough.
class RowSum {
 public:
  __device__ explicit RowSum(int lanes) : lanes_(lanes) {}

  __device__ float operator()(float x) {
    if (lanes_ <= 32) return warp_sum(x, lanes_);
    __shared__ float partial[2][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_sum(x);
    if (lane == 0) partial[half_][warp] = x;
    __syncthreads();
    x = lane < lanes_ / 32 ? partial[half_][lane] : 0.0f;
    half_ ^= 1;
    return warp_sum(x);
  }

 private:
  int lanes_, half_ = 0;
};

}  // namespace pysora::cuda
