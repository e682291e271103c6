#pragma once
#include "pysora/linear.h"

namespace pysora {

// As LinearParams, with int8 weights and tokens that are rounded to int8 on the way: sums are exact.
struct LinearInt8Params : LinearParams {
  const float* scale;  // [E]: a row of the weight stands for itself times this

  // The product's, then a scale for each token, then the sum of each row of the weight.
  std::int64_t scales_at() const { return product().workspace_floats(); }
  std::int64_t sums_at() const { return scales_at() + B * L; }
  std::int64_t workspace_floats() const { return sums_at() + E + 16; }
};

}  // namespace pysora
