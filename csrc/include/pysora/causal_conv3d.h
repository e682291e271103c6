#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// out = residual + bias + convolution of frames [B, C, kt-1+T, H, W], the cache's and then those of x; zeros around
// each frame. With gamma the frames go through silu(x / |x| * sqrt(C) * gamma), |x| the length over C, rounded to
// dtype; with `upsample` they are taken as [2H, 2W], each pixel four times. Sums are taken in fp32. H' = H or 2H, W' =
// W or 2W.
struct CausalConv3dParams {
  const void* x;                          // [B, C, T, H, W], dtype, any strides, best with channels side by side
  std::int64_t x_shape[5], x_strides[5];  // strides in elements, here and below
  const void* weight;                     // [C', C, kt, kh, kw], dtype; kh and kw are odd
  std::int64_t weight_shape[5], weight_strides[5];
  const void* bias;  // [C'], dtype, or null
  std::int64_t bias_stride;
  const void* cache;  // [B, C, kt-1, H, W], dtype, or null: zeros
  std::int64_t cache_strides[5];
  Values gamma;          // [C], or null
  const void* residual;  // [B, C', T, H', W'], dtype, or null
  std::int64_t residual_strides[5];
  void* out;  // [B, C', T, H', W'], dtype
  std::int64_t out_strides[5];
  void* new_cache;  // [B, C, kt-1, H, W], dtype: the last frames of the cache and x, as they are
  std::int64_t new_cache_strides[5];
  float* scales;  // where there is gamma, memory for the sqrt(C) / |x| of each pixel: [B, kt-1+T, H, W]
  bool upsample;
  Dtype dtype;  // bf16 or f16
};

}  // namespace pysora
