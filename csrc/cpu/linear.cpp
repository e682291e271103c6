#include "pysora/linear.h"

#include "epilogue.h"
#include "product.h"

// A matrix product whose results meet the epilogue before they are rounded.
namespace pysora::PYSORA_ISA {
namespace {

template <class T, class Out>
struct Linear {
  using Elem = typename Product<T>::Elem;

  const LinearParams& p;
  const T* const weight = static_cast<const T*>(p.weight);

  const T* token(std::int64_t i) const {
    return static_cast<const T*>(p.x) + i / p.L * p.x_strides[0] + i % p.L * p.x_strides[1];
  }
  void copy_token(std::int64_t i, float* place) const { copy_values<Elem>(token(i), p.x_strides[2], p.D, place); }
  void copy_weight(std::int64_t e, float* place) const {
    copy_values<Elem>(weight + e * p.weight_stride, 1, p.D, place);
  }

  // Results of the matrix unit go through memory: where weights lie in the lanes they need not be transposed there.
  // What has to be packed are then the weights, and else the tokens.
  bool turns() const { return kMatrixUnit<typename Product<T>::Unit> && p.E * p.D < p.B * p.L * (p.D + 2 * p.E); }

  void run() const {
    if (turns()) {
      const bool evenly = p.x_strides[2] == 1 && (p.B == 1 || p.x_strides[0] == p.L * p.x_strides[1]);
      const ProductShape shape = p.turned();
      const Product<T, Along::rows> product{shape, p.workspace, evenly ? token(0) : nullptr, p.x_strides[1]};
      product.run([&](std::int64_t e, float* place) { copy_weight(e, place); },
                  [&](std::int64_t i, float* place) { copy_token(i, place); },
                  [&](std::int64_t i, std::int64_t e, Vec y, auto lanes) { finish<Out>(p, i, e, y, lanes); });
    } else {
      const ProductShape shape = p.product();
      const Product<T> product{shape, p.workspace, weight, p.weight_stride};
      product.run([&](std::int64_t i, float* place) { copy_token(i, place); },
                  [&](std::int64_t e, float* place) { copy_weight(e, place); },
                  [&](std::int64_t i, std::int64_t e, Vec y, auto lanes) { finish<Out>(p, i, e, y, lanes); });
    }
  }
};

template <class T>
void run(const LinearParams& p) {
  if (p.out_dtype == Dtype::f32) {
    Linear<T, float>{p}.run();
  } else {
    Linear<T, Bf16>{p}.run();
  }
}

}  // namespace

void linear(const LinearParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
