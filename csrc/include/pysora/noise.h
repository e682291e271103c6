#pragma once
#include <cstdint>

namespace pysora {

struct NoiseParams {
  float* out;  // [C, T, H, W], contiguous
  std::int64_t C, T, H, W;
  std::uint32_t seed, sample;  // the key
  std::uint32_t origin[3];     // (t, y, x) of out[:, 0, 0, 0]
  int threads;
};

}  // namespace pysora
