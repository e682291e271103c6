#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/product.h"

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
  float* workspace;  // product().workspace_floats() of them
  int threads;

  ProductShape product() const {  // the features are its rows, the tokens its weights
    std::int64_t tokens = video_shape[0], depth = weight_shape[1];
    for (int i = 2; i < 5; ++i) tokens *= video_shape[i] / weight_shape[i], depth *= weight_shape[i];
    return {weight_shape[0], tokens, depth, threads};
  }
};

}  // namespace pysora
