#include "pysora/qk_norm_rope.h"

#include "rows.h"

// One read from memory: the second sweep finds a token's heads in the first-level cache.
namespace pysora::PYSORA_ISA {
namespace {

typedef std::uint64_t Pairs __attribute__((vector_size(W * 4)));  // two fp32 values in each lane
typedef std::uint32_t HalfVec __attribute__((vector_size(W * 2)));

// W / 2 values, each twice.
Vec twice(const float* p, Whole) {
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)  // GCC widens in two halves by itself
  const Pairs wide = reinterpret_cast<Pairs>(_mm512_maskz_cvtepu32_epi64(0xFF, reinterpret_cast<__m256i>(half)));
#elif defined(__AVX2__)
  const Pairs wide = reinterpret_cast<Pairs>(_mm256_cvtepu32_epi64(reinterpret_cast<__m128i>(half)));
#else
  const Pairs wide = __builtin_convertvector(half, Pairs);
#endif
  return reinterpret_cast<Vec>(wide | wide << 32);
}
Vec twice(const float* p, std::int64_t lanes) {
  float part[W / 2] = {};
  std::memcpy(part, p, static_cast<std::size_t>(lanes / 2) * sizeof(float));
  return twice(part, Whole{});
}

// Each pair times e^(i angle): (a cos - b sin, b cos + a sin).
Vec turn(Vec y, Vec cos, Vec sin) {
  Vec sign;
  for (int i = 0; i < W; ++i) sign[i] = i % 2 ? 1.0f : -1.0f;
  const Pairs pairs = reinterpret_cast<Pairs>(y);
  const Vec swapped = reinterpret_cast<Vec>(pairs << 32 | pairs >> 32);
  return fma(y, cos, swapped * (sin * sign));
}

template <class T>
struct QkNormRope {
  const QkNormRopeParams& p;

  void squares(const T* x, Sum& sum) const {
    sum.over(p.K, [&](Vec total, std::int64_t i, auto lanes) {
      const Vec value = load(x + i, lanes);
      return fma(value, value, total);
    });
  }

  float factor(const Sum& sum, std::int64_t n) const {
    return 1.0f / __builtin_sqrtf(sum.total() / static_cast<float>(n) + p.eps);
  }

  void head(const T* x, T* out, float factor, Values gain, const float* cos, const float* sin) const {
    sweep(p.K, [&](std::int64_t i, auto lanes) {
      Vec y = load(x + i, lanes) * factor * load(gain, i, lanes);
      if (cos) y = turn(y, twice(cos + i / 2, lanes), twice(sin + i / 2, lanes));
      store(out + i, y, lanes);
    });
  }

  void token(std::int64_t b, std::int64_t l) const {
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    T* out = static_cast<T*>(p.out) + (b * p.L + l) * p.N * p.K;
    const float* cos = p.cos ? p.cos + l * p.cos_stride : nullptr;
    const float* sin = p.sin ? p.sin + l * p.sin_stride : nullptr;
    float shared = 0;
    if (p.over_heads) {
      Sum sum;
      for (std::int64_t n = 0; n < p.N; ++n) squares(x + n * p.x_strides[2], sum);
      shared = factor(sum, p.N * p.K);
    }
    for (std::int64_t n = 0; n < p.N; ++n) {
      const T* from_head = x + n * p.x_strides[2];
      if (p.over_heads) {
        head(from_head, out + n * p.K, shared, from(p.gain, n * p.K), cos, sin);
      } else {
        Sum sum;
        squares(from_head, sum);
        head(from_head, out + n * p.K, factor(sum, p.K), p.gain, cos, sin);
      }
    }
  }

  void run() const {
    for_rows(p.threads, p.B * p.L, p.N * p.K, [&](std::int64_t i) { token(i / p.L, i % p.L); });
  }
};

// With n the normalised token and h the turned-back gradient times gain: d gain = h n / gain, d x = factor (h - n
// mean(h n)).
template <class T>
struct Backward {
  const QkNormRopeBackwardParams& back;
  const QkNormRopeParams& p = back.forward;
  const QkNormRope<T> forward{p};

  // One head's part: its gradients of gain, and h; returns the sum of h n.
  float head(const T* x, const T* grad, float factor, Values gain, const float* cos, const float* sin, float* d_gain,
             float* h) const {
    Vec along{};
    sweep(p.K, [&](std::int64_t i, auto lanes) {
      Vec g = load(grad + i, lanes);
      if (cos) g = turn(g, twice(cos + i / 2, lanes), -twice(sin + i / 2, lanes));
      const Vec n = load(x + i, lanes) * factor;
      accumulate(d_gain, i, g * n, lanes);
      g = g * load(gain, i, lanes);
      along = fma(g, n, along);
      store(h + i, g, lanes);
    });
    return sum_lanes(along);
  }

  void finish(const T* x, T* out, float factor, float slope, const float* h) const {
    sweep(p.K, [&](std::int64_t i, auto lanes) {
      store_flushed(out + i, factor * (load(h + i, lanes) - load(x + i, lanes) * factor * slope), lanes);
    });
  }

  void token(std::int64_t b, std::int64_t l, int worker) const {
    const std::int64_t width = p.N * p.K, at = (b * p.L + l) * width;
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    const T* grad = static_cast<const T*>(back.grad) + at;
    T* out = static_cast<T*>(p.out) + at;
    const float* cos = p.cos ? p.cos + l * p.cos_stride : nullptr;
    const float* sin = p.sin ? p.sin + l * p.sin_stride : nullptr;
    float *d_gain = back.sums + worker * 2 * width, *h = d_gain + width;
    for (std::int64_t n = 0; n < p.N; n += p.over_heads ? p.N : 1) {
      const std::int64_t last = p.over_heads ? p.N : n + 1;  // heads that are normalised together
      Sum sum;
      for (std::int64_t i = n; i < last; ++i) forward.squares(x + i * p.x_strides[2], sum);
      const std::int64_t values = (last - n) * p.K;
      const float factor = forward.factor(sum, values);
      float along = 0;
      for (std::int64_t i = n; i < last; ++i) {
        const std::int64_t own = p.over_heads ? i * p.K : 0;
        along += head(x + i * p.x_strides[2], grad + i * p.K, factor, from(p.gain, own), cos, sin, d_gain + own,
                      h + i * p.K);
      }
      for (std::int64_t i = n; i < last; ++i)
        finish(x + i * p.x_strides[2], out + i * p.K, factor, along / static_cast<float>(values), h + i * p.K);
    }
  }

  void run() const {
    for_rows_by_worker(p.threads, p.B * p.L, p.N * p.K,
                       [&](std::int64_t i, int worker) { token(i / p.L, i % p.L, worker); });
  }
};

}  // namespace

void qk_norm_rope(const QkNormRopeParams& p) {
  if (p.dtype == Dtype::f32) {
    QkNormRope<float>{p}.run();
  } else {
    QkNormRope<Bf16>{p}.run();
  }
}

void qk_norm_rope_backward(const QkNormRopeBackwardParams& p) {
  if (p.forward.dtype == Dtype::f32) {
    Backward<float>{p}.run();
  } else {
    Backward<Bf16>{p}.run();
  }
}

}  // namespace pysora::PYSORA_ISA
