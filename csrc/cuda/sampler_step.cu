#include "pysora/sampler_step.h"

#include <cstring>

#include "launch.h"
#include "rows.h"

// One pass: a warp holds a tile of every result in registers while it goes through the inputs. Products and sums are
// rounded one by one (the compiler fuses no __fmul_rn with an __fadd_rn): the bits are the reference's.
namespace pysora::cuda {
namespace {

constexpr int kValues = 8;  // of a tile in each thread
constexpr int kTile = 32 * kValues;
constexpr int kBlock = 256;

// A thread's values of a tile: two times four side by side, or where accesses are single, every 32nd.
template <bool wide>
__device__ int place(int lane, int i) {
  return wide ? i / 4 * (kTile / 2) + lane * 4 + i % 4 : i * 32 + lane;
}

// A whole tile with 128-bit accesses. Of 16-bit values a thread reads eight side by side, and the warp swaps them.
__device__ void load_tile(const float* tile, int lane, float (&v)[kValues]) {
  float half[4];
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
    load(tile + place<true>(lane, i), half);
#pragma unroll
    for (int j = 0; j < 4; ++j) v[i + j] = half[j];
  }
}
template <class T>
__device__ void load_tile(const T* tile, int lane, float (&v)[kValues]) {
  const uint4 own = reinterpret_cast<const uint4*>(tile)[lane];
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
    const int source = i * 4 + lane / 2;
    const uint2 low{__shfl_sync(0xFFFFFFFF, own.x, source), __shfl_sync(0xFFFFFFFF, own.y, source)};
    const uint2 high{__shfl_sync(0xFFFFFFFF, own.z, source), __shfl_sync(0xFFFFFFFF, own.w, source)};
    const uint2 mine = lane % 2 ? high : low;
    T part[4];
    std::memcpy(part, &mine, sizeof part);
#pragma unroll
    for (int j = 0; j < 4; ++j) v[i + j] = to_float(part[j]);
  }
}

template <bool wide, class T>
__device__ void load_tile(const T* tile, int lane, int size, float (&v)[kValues]) {
  if constexpr (wide) {
    load_tile(tile, lane, v);
  } else {
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] = place<false>(lane, i) < size ? to_float(tile[place<false>(lane, i)]) : 0;
  }
}

template <bool wide>
__device__ void store_tile(float* tile, int lane, int size, const float (&v)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; i += wide ? 4 : 1) {
    if constexpr (wide) {
      store_quad(tile + place<true>(lane, i), v[i], v[i + 1], v[i + 2], v[i + 3]);
    } else {
      if (place<false>(lane, i) < size) tile[place<false>(lane, i)] = v[i];
    }
  }
}

// The results of one tile, of which `size` values count.
template <class T, int kOuts, bool wide>
__device__ void combine(const SamplerStepParams& p, std::int64_t first, int lane, int size) {
  float input[kValues], total[kOuts][kValues], guided[kValues];
  load_tile<wide>(static_cast<const T*>(p.prediction) + first, lane, size, guided);
  if (p.uncond) {
    load_tile<wide>(static_cast<const T*>(p.uncond) + first, lane, size, input);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const float away = rounded<T>(__fmul_rn(p.guidance, rounded<T>(__fsub_rn(guided[i], input[i]))));
      guided[i] = rounded<T>(__fadd_rn(input[i], away));
    }
  }
  load_tile<wide>(p.sample + first, lane, size, input);
#pragma unroll
  for (int r = 0; r < kOuts; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      total[r][i] = __fadd_rn(__fmul_rn(p.coefficients[r][0], input[i]), __fmul_rn(p.coefficients[r][1], guided[i]));
#pragma unroll 1
  for (int j = 2; j < p.J; ++j) {
    load_tile<wide>(p.others[j - 2] + first, lane, size, input);
#pragma unroll
    for (int r = 0; r < kOuts; ++r)
#pragma unroll
      for (int i = 0; i < kValues; ++i) total[r][i] = __fadd_rn(total[r][i], __fmul_rn(p.coefficients[r][j], input[i]));
  }
#pragma unroll
  for (int r = 0; r < kOuts; ++r)
    if (r < p.R) store_tile<wide>(p.outs[r] + first, lane, size, total[r]);
}

// Whole rounds of a block first, whose warps then go the same way; then, or where accesses are single, tile by tile.
template <class T, int kOuts, bool wide>
__global__ void __launch_bounds__(kBlock) sampler_step_kernel(const __grid_constant__ SamplerStepParams p) {
  constexpr int kWarps = kBlock / 32, kRound = kWarps * kTile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t rounds = wide ? p.n / kRound : 0;
  if constexpr (wide)
    for (std::int64_t round = blockIdx.x; round < rounds; round += gridDim.x)
      combine<T, kOuts, true>(p, round * kRound + warp * kTile, lane, kTile);
  const std::int64_t step = std::int64_t{gridDim.x} * kRound;
  for (std::int64_t first = rounds * kRound + (blockIdx.x * kWarps + warp) * std::int64_t{kTile}; first < p.n;
       first += step)
    combine<T, kOuts, false>(p, first, lane, static_cast<int>(min(p.n - first, std::int64_t{kTile})));
}

bool wide(const SamplerStepParams& p) {
  bool ok = aligned(p.sample) && aligned(p.prediction) && aligned(p.uncond);
  for (int j = 2; j < p.J; ++j) ok = ok && aligned(p.others[j - 2]);
  for (int r = 0; r < p.R; ++r) ok = ok && aligned(p.outs[r]);
  return ok;
}

template <class T, int kOuts>
void launch(const SamplerStepParams& p, cudaStream_t stream) {
  const unsigned blocks = row_blocks(ceil_div(p.n, kTile), {1, kBlock / 32});
  if (wide(p)) {
    PYSORA_LAUNCH((sampler_step_kernel<T, kOuts, true>), blocks, kBlock, 0, stream, p);
  } else {
    PYSORA_LAUNCH((sampler_step_kernel<T, kOuts, false>), blocks, kBlock, 0, stream, p);
  }
}

}  // namespace

void sampler_step(const SamplerStepParams& p, cudaStream_t stream) {
  if (p.n == 0 || p.R == 0) return;
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (p.R == 1) {
      launch<T, 1>(p, stream);
    } else if (p.R <= 3) {
      launch<T, 3>(p, stream);
    } else {
      launch<T, SamplerStepParams::max_outs>(p, stream);
    }
  });
}

}  // namespace pysora::cuda
