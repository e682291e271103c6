#include "pysora/sampler_step.h"

#include "pysora/parallel.h"
#include "simd.h"

// One pass over memory: each task holds a stretch of the guided prediction in the first-level cache and makes every
// result's stretch from it. This file relies on -ffp-contract=off: its bits are the reference's.
namespace pysora::PYSORA_ISA {
namespace {

constexpr std::int64_t kStretch = 1024;

template <class T>
float rounded(float x) {
  T y;
  from_float(x, y);
  return to_float(y);
}

template <class T>
void guide(const SamplerStepParams& p, std::int64_t first, std::int64_t n, float* guided) {
  const T* cond = static_cast<const T*>(p.prediction) + first;
  if (!p.uncond) {
    for (std::int64_t i = 0; i < n; ++i) guided[i] = to_float(cond[i]);
    return;
  }
  const T* uncond = static_cast<const T*>(p.uncond) + first;
  for (std::int64_t i = 0; i < n; ++i) {
    const float base = to_float(uncond[i]);
    const float away = rounded<T>(p.guidance * rounded<T>(to_float(cond[i]) - base));
    guided[i] = rounded<T>(base + away);
  }
}

}  // namespace

void sampler_step(const SamplerStepParams& p) {
  parallel_for(p.threads, (p.n + kStretch - 1) / kStretch, [&](std::int64_t task, int) {
    const std::int64_t first = task * kStretch, n = p.n - first < kStretch ? p.n - first : kStretch;
    float guided[kStretch];
    if (p.dtype == Dtype::f32) {
      guide<float>(p, first, n, guided);
    } else {
      guide<Bf16>(p, first, n, guided);
    }
    for (int r = 0; r < p.R; ++r) {
      const float* c = p.coefficients[r];
      const float* sample = p.sample + first;
      float total[kStretch];
      for (std::int64_t i = 0; i < n; ++i) total[i] = c[0] * sample[i] + c[1] * guided[i];
      for (int j = 2; j < p.J; ++j) {
        const float* other = p.others[j - 2] + first;
        for (std::int64_t i = 0; i < n; ++i) total[i] = total[i] + c[j] * other[i];
      }
      std::memcpy(p.outs[r] + first, total, static_cast<std::size_t>(n) * sizeof(float));
    }
  });
}

}  // namespace pysora::PYSORA_ISA
