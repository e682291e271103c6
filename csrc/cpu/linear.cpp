#include "pysora/linear.h"

#include "product.h"

// A matrix product whose results meet the epilogue before they are rounded.
namespace pysora::PYSORA_ISA {
namespace {

// y / 2 * (1 + tanh(u)) is y * sigmoid(2u), with u = sqrt(2 / pi) * (y + 0.044715 y^3) (Hendrycks and Gimpel 2016).
Vec gelu(Vec y) {
  return y * sigmoid(y * (1.5957691f + 0.071354816f * (y * y)));
}

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
      [&](std::int64_t token, std::int64_t e, Vec y, auto lanes) {
        if (p.bias.data) y = y + load(p.bias, e, lanes);
        if (p.epilogue == Epilogue::gelu) y = gelu(y);
        if (p.epilogue == Epilogue::gate_residual) {
          const std::int64_t b = token / p.L, l = token % p.L;
          const Values gate = from(p.gate.first, p.gate.row(b, l) * p.gate.stride);
          const Values residual = from(p.residual, b * p.residual_strides[0] + l * p.residual_strides[1]);
          y = load(residual, e, lanes) + y * load(gate, e, lanes);
        }
        store_flushed(static_cast<Out*>(p.out) + token * p.E + e, y, lanes);
      });
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
