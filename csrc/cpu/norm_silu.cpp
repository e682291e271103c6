#include "pysora/norm_silu.h"

#include "rows.h"

// Blocks of pixels are read once from memory for their lengths and once from the cache for the result.
namespace pysora::PYSORA_ISA {
namespace {

constexpr std::int64_t kBlockValues = 1 << 16;  // of a block of pixels with all channels
constexpr std::int64_t kMostPixels = 512;       // of a block; a multiple of every W

// 1 / |x| from the sum of squares; NaN stays NaN.
Vec inverse_length(Vec squares) {
  const Vec length = sqrt(squares);
  return 1.0f / (length < 1e-12f ? splat(1e-12f) : length);
}

template <class T>
struct NormSilu {
  const NormSiluParams& p;
  const float root = __builtin_sqrtf(static_cast<float>(p.C));

  Vec finish(Vec y) const { return p.silu ? y * sigmoid(y) : y; }

  // Adds the squares of so many channels, for pixels that lie side by side.
  template <int channels>
  void add_squares(const T* x, std::int64_t pixels, float* sums) const {
    sweep(pixels, [&](std::int64_t i, auto lanes) {
      Vec total = {};
      for (int c = 0; c < channels; ++c) {
        const Vec value = load(x + c * p.x_channel + i, lanes);
        total = fma(value, value, total);
      }
      store(sums + i, load(sums + i) + total);
    });
  }

  // Pixels that lie side by side, at most kMostPixels: vectors of pixels.
  void pixels(const T* x, T* out, std::int64_t n) const {
    float sums[kMostPixels] = {};
    std::int64_t c = 0;
    for (; c + 8 <= p.C; c += 8) add_squares<8>(x + c * p.x_channel, n, sums);
    for (; c < p.C; ++c) add_squares<1>(x + c * p.x_channel, n, sums);
    float* factors = sums;
    sweep(n, [&](std::int64_t i, auto) { store(factors + i, inverse_length(load(sums + i))); });
    for (c = 0; c < p.C; ++c) {
      const float gamma = element(p.gamma, c) * root;
      const T* from = x + c * p.x_channel;
      T* to = out + c * p.out_channel;
      sweep(n, [&](std::int64_t i, auto lanes) {
        store(to + i, finish(load(from + i, lanes) * load(factors + i) * gamma), lanes);
      });
    }
  }

  // One pixel whose channels lie side by side: vectors of channels.
  void channels(const T* x, T* out) const {
    Sum squares;
    squares.over(p.C, [&](Vec total, std::int64_t i, auto lanes) {
      const Vec value = load(x + i, lanes);
      return fma(value, value, total);
    });
    const float factor = inverse_length(splat(squares.total()))[0];
    sweep(p.C, [&](std::int64_t i, auto lanes) {
      store(out + i, finish(load(x + i, lanes) * factor * (load(p.gamma, i, lanes) * root)), lanes);
    });
  }

  void run() const {
    if (p.C == 0 || p.run == 0) return;
    const std::int64_t fitting = kBlockValues / p.C / 64 * 64;
    const std::int64_t most = fitting < 64 ? 64 : fitting < kMostPixels ? fitting : kMostPixels;
    const std::int64_t runs = p.outer[0] * p.outer[1] * p.outer[2] * p.outer[3], blocks = ceil_div(p.run, most);
    for_rows(p.threads, runs * blocks, (p.run < most ? p.run : most) * p.C, [&](std::int64_t task) {
      const std::int64_t first = task % blocks * most, n = p.run - first < most ? p.run - first : most;
      const T* x = static_cast<const T*>(p.x) + first * p.x_pixel;
      T* out = static_cast<T*>(p.out) + first * p.out_pixel;
      std::int64_t place = task / blocks;
      for (int i = 3; i >= 0; place /= p.outer[i--]) {
        x += place % p.outer[i] * p.x_outer_strides[i];
        out += place % p.outer[i] * p.out_outer_strides[i];
      }
      if (!p.by_channels) return pixels(x, out, n);
      for (std::int64_t i = 0; i < n; ++i) channels(x + i * p.x_pixel, out + i * p.out_pixel);
    });
  }
};

}  // namespace

void norm_silu(const NormSiluParams& p) {
  if (p.dtype == Dtype::f32) {
    NormSilu<float>{p}.run();
  } else {
    NormSilu<Bf16>{p}.run();
  }
}

}  // namespace pysora::PYSORA_ISA
