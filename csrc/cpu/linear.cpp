#include "pysora/linear.h"

#include "epilogue.h"
#include "product.h"

// A matrix product whose results meet the epilogue before they are rounded.
namespace pysora::PYSORA_ISA {
namespace {

template <class T, class Out>
void run(const LinearParams& p) {
  using Elem = typename Product<T>::Elem;
  const T* weight = static_cast<const T*>(p.weight);
  const ProductShape shape = p.product();
  const Product<T> product{shape, p.workspace, weight, p.weight_stride};
  product.run(
      [&](std::int64_t token, float* place) {
        const T* x = static_cast<const T*>(p.x) + token / p.L * p.x_strides[0] + token % p.L * p.x_strides[1];
        copy_values<Elem>(x, p.x_strides[2], p.D, place);
      },
      [&](std::int64_t e, float* place) { copy_values<Elem>(weight + e * p.weight_stride, 1, p.D, place); },
      [&](std::int64_t token, std::int64_t e, Vec y, auto lanes) { finish<Out>(p, token, e, y, lanes); });
}

template <class T>
void run(const LinearParams& p) {
  if (p.out_dtype == Dtype::f32) {
    run<T, float>(p);
  } else {
    run<T, Bf16>(p);
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
