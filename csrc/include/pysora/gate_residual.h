#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/timestep_rows.h"

namespace pysora {

// out = x + y * gate, with the gate of each token's timestep; product and sum are rounded one by one to fp32.
struct GateResidualParams {
  const void* x;                            // [B, L, D], dtype, D side by side
  Values y;                                 // [B, L, D], D side by side
  std::int64_t x_strides[2], y_strides[2];  // of B and L, in elements
  TimestepRows gate;                        // [U, D], D side by side
  void* out;                                // [B, L, D], dtype, contiguous
  std::int64_t B, L, D;
  Dtype dtype;
  int threads;
};

}  // namespace pysora
