#include "pysora/norm_silu.h"

#include <cmath>

#include "launch.h"
#include "rows.h"

// One pass: pixels stay in registers from the sum of their squares to the result. Where the channels lie side by side a
// pixel is a row; where the pixels do, a block holds a tile of pixels with all their channels.
namespace pysora::cuda {
namespace {

constexpr int kMostThreads = 512;  // of a pixel whose channels lie side by side: at most 8192 of them
constexpr int kTilePixels = 64;
constexpr int kMostChannels = 1024;  // where the pixels lie side by side

// Channels of a tile in each thread, of P pixels each.
template <int P>
constexpr int kTileSteps = P == 1 ? 16 : 32 / P;

__device__ float finish(float y, bool silu) {
  return silu ? y * reciprocal_fast(1.0f + __expf(-y)) : y;
}

// 1 / max(|x|, 1e-12) from the sum of squares; NaN stays NaN.
__device__ float inverse_length(float squares) {
  const float inverse = rsqrtf(squares);
  return inverse > 1e12f ? 1e12f : inverse;
}

// Moves x and out from the first pixel of the first run to that of run `place`.
template <class T>
__device__ void to_run(const NormSiluParams& p, unsigned place, const T*& x, T*& out) {
#pragma unroll
  for (int i = 3; i >= 0; --i) {
    if (p.outer[i] == 1) continue;
    const unsigned size = static_cast<unsigned>(p.outer[i]), at = place % size;
    x += at * p.x_outer_strides[i], out += at * p.out_outer_strides[i];
    place /= size;
  }
}

// blockDim is (threads of a pixel, pixels of a block); root is sqrt(C).
template <class T, int P>
__global__ void __launch_bounds__(kMostThreads)
    norm_silu_channels_kernel(const __grid_constant__ NormSiluParams p, unsigned pixels, float root) {
  constexpr int kSteps = kHeld / P;
  const unsigned C = static_cast<unsigned>(p.C), run = static_cast<unsigned>(p.run);
  const unsigned first = threadIdx.x * P, step = blockDim.x * P;
  const int steps = first < C ? static_cast<int>((C - first + step - 1) / step) : 0;  // of this thread
  RowSum sum(blockDim.x);

  float gamma[kSteps][P] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) load_in_pairs(p.gamma, first + i * step, i < steps, gamma[i]);

  for (unsigned start = blockIdx.x * blockDim.y; start < pixels; start += gridDim.x * blockDim.y) {
    const unsigned pixel = start + threadIdx.y;
    const int held = pixel < pixels ? steps : 0;
    const T* x = static_cast<const T*>(p.x) + pixel % run * p.x_pixel + first;
    T* out = static_cast<T*>(p.out) + pixel % run * p.out_pixel + first;
    to_run(p, pixel / run, x, out);
    float y[kSteps][P] = {}, squares = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i, x += step) {
      if (i < held) load(x, y[i]);
#pragma unroll
      for (int j = 0; j < P; ++j) squares = fmaf(y[i][j], y[i][j], squares);
    }
    const float factor = inverse_length(sum(squares));
#pragma unroll
    for (int i = 0; i < kSteps; ++i, out += step) {
#pragma unroll
      for (int j = 0; j < P; ++j) y[i][j] = finish(y[i][j] * factor * (gamma[i][j] * root), p.silu);
      if (i < held) store(out, y[i]);
    }
  }
}

// blockDim is (P pixels each, channels in steps of blockDim.y); `tiles` of a run, and runs in all.
template <class T, int P>
__global__ void __launch_bounds__(1024)
    norm_silu_pixels_kernel(const __grid_constant__ NormSiluParams p, unsigned tiles, unsigned runs, float root) {
  constexpr int kSteps = kTileSteps<P>;
  __shared__ float partial[32][kTilePixels], factors[kTilePixels];  // of pixel j of thread x: at j * blockDim.x + x
  const unsigned C = static_cast<unsigned>(p.C), run = static_cast<unsigned>(p.run);
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  const unsigned width = blockDim.x * P;  // pixels of a tile

  for (unsigned tile = blockIdx.x; tile < tiles * runs; tile += gridDim.x) {
    const unsigned pixel = tile % tiles * width + threadIdx.x * P;
    const T* x = static_cast<const T*>(p.x) + pixel * p.x_pixel;
    T* out = static_cast<T*>(p.out) + pixel * p.out_pixel;
    to_run(p, tile / tiles, x, out);
    float y[kSteps][P] = {}, squares[P] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned c = threadIdx.y + i * blockDim.y;
      if (pixel < run && c < C) load(x + c * p.x_channel, y[i]);
#pragma unroll
      for (int j = 0; j < P; ++j) squares[j] = fmaf(y[i][j], y[i][j], squares[j]);
    }
#pragma unroll
    for (int j = 0; j < P; ++j) {
      for (unsigned lanes = 16; lanes >= blockDim.x; lanes /= 2)
        squares[j] += __shfl_xor_sync(0xFFFFFFFF, squares[j], lanes);
      if (thread % 32 < blockDim.x) partial[thread / 32][j * blockDim.x + threadIdx.x] = squares[j];
    }
    __syncthreads();
    for (unsigned i = thread; i < width; i += threads) {
      float total = 0;
      for (unsigned warp = 0; warp < threads / 32; ++warp) total += partial[warp][i];
      factors[i] = inverse_length(total);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned c = threadIdx.y + i * blockDim.y;
      if (pixel >= run || c >= C) continue;
      float gamma[1];
      load(p.gamma, c, gamma);
#pragma unroll
      for (int j = 0; j < P; ++j)
        y[i][j] = finish(y[i][j] * factors[j * blockDim.x + threadIdx.x] * (gamma[0] * root), p.silu);
      store(out + c * p.out_channel, y[i]);
    }
  }
}

// Whether every run, and every pixel or channel of it, starts at a multiple of 16 bytes.
bool wide(const NormSiluParams& p, int pack) {
  const std::int64_t inner = p.by_channels ? p.C : p.run, across = p.by_channels ? p.run : p.C;
  const std::int64_t x_step = p.by_channels ? p.x_pixel : p.x_channel;
  const std::int64_t out_step = p.by_channels ? p.out_pixel : p.out_channel;
  bool ok = aligned(p.x) && aligned(p.out) && inner % pack == 0 && (across == 1 || (x_step | out_step) % pack == 0);
  if (p.by_channels) ok = ok && aligned(p.gamma.data);
  for (int i = 0; i < 4; ++i)
    ok = ok && (p.outer[i] == 1 || (p.x_outer_strides[i] | p.out_outer_strides[i]) % pack == 0);
  return ok;
}

template <class T, int P>
void by_channels(const NormSiluParams& p, unsigned runs, float root, cudaStream_t stream) {
  const unsigned pixels = runs * static_cast<unsigned>(p.run);
  const RowShape shape = row_shape(p.C, 2);
  PYSORA_LAUNCH((norm_silu_channels_kernel<T, P>), row_blocks(pixels, shape), dim3(shape.lanes, shape.rows), 0, stream,
                p, pixels, root);
}

template <class T, int P>
void by_pixels(const NormSiluParams& p, unsigned runs, float root, cudaStream_t stream) {
  constexpr int kSteps = kTileSteps<P>, kThreads = 1024;
  static_assert(kTileSteps<P> * kThreads / (P == 1 ? 16 : 4) >= kMostChannels);
  const int channels = static_cast<int>(ceil_div(p.C, kSteps));  // in each step
  int x = P == 1 ? 32 : 8;
  if (channels * x > kThreads) x /= 2;
  const int whole = 32 / x, y = static_cast<int>(ceil_div(channels, whole)) * whole;
  const unsigned tiles = static_cast<unsigned>(ceil_div(p.run, x * P));
  const unsigned blocks = row_blocks(std::int64_t{tiles} * runs, {1, 1});
  PYSORA_LAUNCH((norm_silu_pixels_kernel<T, P>), blocks, dim3(x, y), 0, stream, p, tiles, runs, root);
}

}  // namespace

void norm_silu(const NormSiluParams& p, cudaStream_t stream) {
  const std::int64_t runs = p.outer[0] * p.outer[1] * p.outer[2] * p.outer[3];
  if (p.C == 0 || p.run * runs == 0) return;
  const float root = std::sqrt(static_cast<float>(p.C));
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto launch = [&](auto pack) {
      if (p.by_channels) {
        by_channels<T, pack>(p, static_cast<unsigned>(runs), root, stream);
      } else {
        by_pixels<T, pack>(p, static_cast<unsigned>(runs), root, stream);
      }
    };
    if (wide(p, kPack<T>)) {
      launch(std::integral_constant<int, kPack<T>>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace pysora::cuda
