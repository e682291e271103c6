#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// outs[r] = sum_j coefficients[r][j] * input[j] with the inputs (sample, guided, others...), products and sums one by
// one in this order; guided = uncond + guidance * (prediction - uncond) in the prediction's dtype.
struct SamplerStepParams {
  static constexpr int max_outs = 8, max_inputs = 16;
  std::int64_t n;  // elements of each tensor; all are contiguous
  const float* sample;
  const void* prediction;  // dtype
  const void* uncond;      // dtype, or null
  Dtype dtype;
  float guidance;
  int R, J;  // results; inputs with sample and guided
  const float* others[max_inputs - 2];
  float coefficients[max_outs][max_inputs];
  float* outs[max_outs];
  int threads;
};

}  // namespace pysora
