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

// The gradients of `gate_residual` from that of its result, which is that of x as well.
struct GateResidualBackwardParams {
  const void* grad;           // [B, L, D], dtype, contiguous
  Values y;                   // [B, L, D], D side by side
  std::int64_t y_strides[2];  // of B and L, in elements
  TimestepRows gate;          // [U, D], D side by side
  void* out;                  // [B, L, D], y's dtype, contiguous: the gradient of y
  float* sums;                // fp32 [threads, U, D], zeros: each thread's part of the gradient of gate
  std::int64_t B, L, D;
  Dtype dtype;
  int threads;
};

}  // namespace pysora
