#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// out = gelu(x) in its tanh form; with grad, that times the derivative of gelu at x.
struct GeluParams {
  const void* x;     // [n], dtype
  const void* grad;  // [n], dtype, or null
  void* out;         // [n], dtype
  std::int64_t n;
  Dtype dtype;
  int threads;
};

}  // namespace pysora
