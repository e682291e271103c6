#pragma once
#include "int8.h"

// fp32 values as sums of three bf16 values each, 8 of their 24 digits apiece: cut off, not rounded, so that no digit is
// lost. A product with a value that bf16 holds is then three bf16 products, each exact in the fp32 that sums them.
// (After the splits of Henry, Tang and Heinecke 2019, arXiv:1904.06376, who round, and split both factors.)
namespace {

// The n values from x on that lie `step` apart: the units of all first parts, then of the second, then of the third;
// each part has `depth` units, with zeros at its end.
inline void split_values(const float* x, std::int64_t step, std::int64_t n, std::int64_t depth, float* to) {
  Bf16* parts[kParts];
  for (int part = 0; part < kParts; ++part) {
    float* units = to + part * depth;
    for (std::int64_t u = n / 2; u < depth; ++u) units[u] = 0;
    parts[part] = reinterpret_cast<Bf16*>(units);
  }
  const auto values = strided(x, step, n);
  sweep(n, [&](std::int64_t i, auto lanes) {
    Vec rest = values(i, lanes);
    for (int part = 0; part < kParts; ++part) {
      const Vec cut = from_bits(bits(rest) & static_cast<std::int32_t>(0xFFFF0000));
      store_flushed(parts[part] + i, cut, lanes);
      rest = rest - cut;
    }
    if (__builtin_expect(!any_greater(rest == rest ? Vec{} : splat(1.0f), 0.0f), 1)) return;
    for (int part = 0; part < kParts; ++part) {  // infinity and NaN have no rest
      const Vec cut = load(parts[part] + i, lanes), whole = part ? Vec{} : values(i, lanes);
      store_flushed(parts[part] + i, rest == rest ? cut : whole, lanes);
    }
  });
}

// n values that bf16 holds, as `depth` units.
inline void narrow_values(const float* x, std::int64_t n, std::int64_t depth, float* to) {
  for (std::int64_t u = n / 2; u < depth; ++u) to[u] = 0;
  sweep(n,
        [&](std::int64_t i, auto lanes) { store_flushed(reinterpret_cast<Bf16*>(to) + i, load(x + i, lanes), lanes); });
}

// Whether bf16 holds n values, none of them infinity or NaN.
inline bool bf16_holds(const float* x, std::int64_t n) {
  IVec lost{};
  Vec poison{};  // NaN where a value is not finite
  sweep(n, [&](std::int64_t i, auto lanes) {
    const Vec v = load(x + i, lanes);
    lost = lost | (bits(v) & 0xFFFF);
    poison = poison + v * 0.0f;
  });
  std::int32_t any = 0;
  for (int i = 0; i < W; ++i) any |= lost[i];
  return !any && sum_lanes(poison) == 0.0f;
}

}  // namespace
