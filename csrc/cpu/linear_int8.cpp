#include "pysora/linear_int8.h"

#include "epilogue.h"
#include "int8.h"

// A matrix product in int8: each token is rounded to 8 bits when it is packed, by a scale of its own; the sums are
// exact. Source of the scheme: dynamic quantisation per token, weights per channel (Dettmers et al. 2022, LLM.int8()).
namespace pysora::PYSORA_ISA {
namespace {

template <class T, class Out>
void run(const LinearInt8Params& p) {
  using Elem = Int8::Elem;
  const auto* weight = static_cast<const std::int8_t*>(p.weight);
  const ProductShape shape = p.product();
  float* scales = p.workspace + p.scales_at();
  auto* sums = reinterpret_cast<std::int32_t*>(p.workspace + p.sums_at());
  if (kOffset)
    for_rows(p.threads, p.E, p.D, [&](std::int64_t e) { sums[e] = offset_sum(weight + e * p.weight_stride, p.D); });
  const Product<std::int8_t> product{shape, p.workspace, weight, p.weight_stride};
  product.run(
      [&](std::int64_t token, float* place) {
        const T* x = static_cast<const T*>(p.x) + token / p.L * p.x_strides[0] + token % p.L * p.x_strides[1];
        scales[token] = quantize<kOffset>(strided(x, p.x_strides[2], p.D), p.D, place);
      },
      [&](std::int64_t e, float* place) { copy_values<Elem>(weight + e * p.weight_stride, 1, p.D, place); },
      [&](std::int64_t token, std::int64_t e, Vec y, auto lanes) {
        if constexpr (kOffset != 0) {
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
