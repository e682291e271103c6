#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// out = silu(x / |x| * sqrt(C) * gamma), |x| the length over C of each pixel, at least 1e-12.
// The pixels (samples, frames, rows, columns) are merged into as few dimensions as the strides allow.
struct NormSiluParams {
  const void* x;  // [outer..., run, C], dtype, any strides
  void* out;      // the same shape and dtype
  std::int64_t C, run;
  std::int64_t outer[4], x_outer_strides[4], out_outer_strides[4];  // in elements; size 1 where merged
  std::int64_t x_pixel, out_pixel;                                  // strides inside a run
  std::int64_t x_channel, out_channel;                              // strides of C
  bool by_channels;  // C lies side by side in both, else the pixels of a run do
  Values gamma;      // [C]
  bool silu;
  Dtype dtype;
  int threads;
};

}  // namespace pysora
