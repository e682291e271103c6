#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/timestep_rows.h"

namespace pysora {

// out = (norm(x) * gain + bias) * (1 + scale) + shift; the norm over D is a layer norm, or without a mean an RMS norm.
struct AdalnParams {
  const void* x;              // [B, L, D], dtype, D side by side
  std::int64_t x_strides[2];  // of B and L, in elements
  void* out;                  // [B, L, D], dtype, contiguous
  std::int64_t B, L, D;
  TimestepRows table;     // [U, 2, D], D side by side: shift, then scale
  std::int64_t to_scale;  // from a row's shift to its scale, in elements
  Values gain, bias;      // [D], or no data
  float eps;
  bool layer;
  Dtype dtype;
  int threads;
};

// The gradients of `adaln` from that of its result.
struct AdalnBackwardParams {
  AdalnParams forward;  // out is the gradient of x
  const void* grad;     // [B, L, D], dtype, contiguous
  // fp32 [threads, floats], zeros: each thread's part of the gradients of table [U, 2, D], gain [D] and bias [D], and
  // room for a row.
  float* sums;
  static std::int64_t floats(std::int64_t U, std::int64_t D) { return (2 * U + 3) * D; }
};

}  // namespace pysora
