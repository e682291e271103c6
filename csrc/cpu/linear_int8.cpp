#include "pysora/linear_int8.h"

#include "epilogue.h"
#include "product.h"

// A matrix product in int8: each token is rounded to 8 bits when it is packed, by a scale of its own; the sums are
// exact. Source of the scheme: dynamic quantisation per token, weights per channel (Dettmers et al. 2022, LLM.int8()).
namespace pysora::PYSORA_ISA {
namespace {

using Unit = UnitOf<std::int8_t>::Unit;
// `vpdpbusd` multiplies unsigned by signed bytes: tokens are held with 128 added, which is taken off the sums.
constexpr bool kOffset = Unit::per == 4;

// Rounds D values to integers up to 127 times the scale that is returned, NaN for values that are not finite.
template <class T>
float quantize(const T* x, std::int64_t step, std::int64_t D, float* place) {
  Vec largest{}, poison{};  // NaN where a value is not finite, else 0
  auto values = [&](std::int64_t i, auto lanes) {
    if (step == 1) return load(x + i, lanes);
    Vec v{};
    for (int j = 0; j < W && i + j < D; ++j) v[j] = to_float(x[(i + j) * step]);
    return v;
  };
  sweep(D, [&](std::int64_t i, auto lanes) {
    const Vec v = values(i, lanes);
    largest = max(largest, v < 0.0f ? -v : v);
    poison = poison + v * 0.0f;
  });
  float top = 0;
  for (int j = 0; j < W; ++j) top = largest[j] > top ? largest[j] : top;
  const float inverse = top > 0 ? 127.0f / top : 0.0f;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  sweep(D, [&](std::int64_t i, auto lanes) {
    const Vec shifted = values(i, lanes) * inverse + magic;
    if constexpr (kOffset) {
      typedef std::uint8_t Bytes __attribute__((vector_size(W)));
      const Bytes q = __builtin_convertvector(reinterpret_cast<UVec>(bits(shifted) - bits(magic) + 128), Bytes);
      const std::size_t count = static_cast<std::size_t>(D - i < W ? D - i : W);
      std::memcpy(reinterpret_cast<char*>(place) + i, &q, count);
    } else {
      store(place + i, shifted - magic, lanes);
    }
  });
  return top / 127.0f + sum_lanes(poison);
}

template <class T, class Out>
void run(const LinearInt8Params& p) {
  using Elem = typename Unit::Elem;
  const auto* weight = static_cast<const std::int8_t*>(p.weight);
  const ProductShape shape = p.product();
  float* scales = p.workspace + p.scales_at();
  auto* sums = reinterpret_cast<std::int32_t*>(p.workspace + p.sums_at());
  if (kOffset)
    for_rows(p.threads, p.E, p.D, [&](std::int64_t e) {
      std::int32_t sum = 0;
      for (std::int64_t d = 0; d < p.D; ++d) sum += weight[e * p.weight_stride + d];
      sums[e] = 128 * sum;
    });
  const Product<std::int8_t> product{shape, p.workspace, weight, p.weight_stride};
  product.run(
      [&](std::int64_t token, float* place) {
        const T* x = static_cast<const T*>(p.x) + token / p.L * p.x_strides[0] + token % p.L * p.x_strides[1];
        scales[token] = quantize(x, p.x_strides[2], p.D, place);
      },
      [&](std::int64_t e, float* place) { copy_values<Elem>(weight + e * p.weight_stride, 1, p.D, place); },
      [&](std::int64_t token, std::int64_t e, Vec y, auto lanes) {
        if constexpr (kOffset) {
          IVec sum;
          std::memcpy(&sum, sums + e, sizeof sum);  // past the last weight lies room
          y = __builtin_convertvector(bits(y) - sum, Vec);
        }
        finish<Out>(p, token, e, y * (scales[token] * load(p.scale + e, lanes)), lanes);
      });
}

template <class T>
void run(const LinearInt8Params& p) {
  if (p.out_dtype == Dtype::f32) {
    run<T, float>(p);
  } else {
    run<T, Bf16>(p);
  }
}

}  // namespace

void linear_int8(const LinearInt8Params& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
