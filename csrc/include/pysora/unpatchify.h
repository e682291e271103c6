#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// out[b, c, t*pt + i, h*ph + j, w*pw + k] = tokens[b, (t*gh + h)*gw + w, ((i*ph + j)*pw + k)*C + c].
struct UnpatchifyParams {
  const void* tokens;       // [B, gt*gh*gw, pt*ph*pw*C], dtype, any strides
  std::int64_t strides[3];  // in elements
  void* out;                // [B, C, gt*pt, gh*ph, gw*pw], dtype, contiguous
  std::int64_t B, C;
  std::int64_t grid[3], patch[3];  // (gt, gh, gw), (pt, ph, pw)
  Dtype dtype;
  int threads;
};

}  // namespace pysora
