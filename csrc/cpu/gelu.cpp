#include "pysora/gelu.h"

#include "epilogue.h"

namespace pysora::PYSORA_ISA {
namespace {

// As `gelu`: with s the sigmoid of 2u, s + y s (1 - s) d(2u)/dy.
Vec gelu_slope(Vec y) {
  const Vec square = y * y, s = sigmoid(y * (1.5957691f + 0.071354816f * square));
  return fma(y * s * (1.0f - s), 1.5957691f + 0.21406445f * square, s);
}

template <class T>
void run(const GeluParams& p) {
  const T *x = static_cast<const T*>(p.x), *grad = static_cast<const T*>(p.grad);
  constexpr std::int64_t kRow = 1024;
  for_rows(p.threads, ceil_div(p.n, kRow), kRow, [&](std::int64_t row) {
    const std::int64_t first = row * kRow, n = p.n - first < kRow ? p.n - first : kRow;
    T* out = static_cast<T*>(p.out) + first;
    sweep(n, [&](std::int64_t i, auto lanes) {
      const Vec y = load(x + first + i, lanes);
      store_flushed(out + i, grad ? load(grad + first + i, lanes) * gelu_slope(y) : ::gelu(y), lanes);
    });
  });
}

}  // namespace

void gelu(const GeluParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
