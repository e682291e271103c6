#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// out = x / rms(x) * gain, then the pairs (2i, 2i + 1) of each head turned by their token's angles.
struct QkNormRopeParams {
  const void* x;              // [B, L, N, K], dtype, K side by side
  std::int64_t x_strides[3];  // of B, L and N, in elements
  void* out;                  // [B, L, N, K], dtype, contiguous
  std::int64_t B, L, N, K;
  Values gain;             // [N * K] with over_heads, else [K]
  bool over_heads;         // the norm runs over N and K together
  const float *cos, *sin;  // [L, K / 2], K / 2 side by side; both null: no rotation
  std::int64_t cos_stride, sin_stride;
  float eps;
  Dtype dtype;
  int threads;
};

// The gradients of `qk_norm_rope` from that of its result.
struct QkNormRopeBackwardParams {
  QkNormRopeParams forward;  // out is the gradient of x
  const void* grad;          // [B, L, N, K], dtype, contiguous
  // fp32 [threads, 2, N * K], zeros: each thread's part of the gradient of gain, and room for a token.
  float* sums;
};

}  // namespace pysora
