#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/gemm_shape.h"

namespace pysora {

// out[b, l, d] = bias[d] + sum of video over the patch of token l times weight[d]; the sum is taken in fp32.
struct PatchEmbedParams {
  const void* video;                              // [B, C, T, H, W], dtype, any strides
  std::int64_t video_shape[5], video_strides[5];  // in elements
  const void* weight;                             // [D, C, pt, ph, pw], dtype, any strides
  std::int64_t weight_shape[5], weight_strides[5];
  const void* bias;  // [D], dtype, or null
  std::int64_t bias_stride;
  void* out;  // [B, L, D], dtype, contiguous
  Dtype dtype;
  float* workspace;  // workspace_floats(...) of them
  int threads;

  static std::int64_t workspace_floats(std::int64_t D, std::int64_t depth, int threads) {
    return ceil_div(D, kPanel) * depth * kPanel + threads * kRows * (depth + kPanel);
  }
};

}  // namespace pysora
