#pragma once
#include "int8.h"

// fp32 values as sums of three bf16 values each, 8 of their 24 digits apiece, so that none is lost. A product with a
// value that bf16 holds is then three bf16 products, each exact in the fp32 that sums them. (After the splits of Henry,
// Tang and Heinecke 2019, arXiv:1904.06376, who round, and split both factors.)
namespace {

// The first 8 digits of finite values, which are left with the rest: cut off, or the nearest, which leave a smaller
// rest of either sign. The nearest to the very largest is infinity.
template <bool nearest>
Vec cut(Vec& x) {
  const Vec part = from_bits((bits(x) + (nearest ? 0x8000 : 0)) & static_cast<std::int32_t>(0xFFFF0000));
  x = x - part;
  return part;
}

inline bool any_nan(Vec x) {
  return any_greater(x == x ? Vec{} : splat(1.0f), 0.0f);
}

// The n values from x on that lie `step` apart: the units of all first parts, then of the second, then of the third;
// each part has `depth` units, with zeros at its end.
template <bool nearest>
void split_values(const float* x, std::int64_t step, std::int64_t n, std::int64_t depth, float* to) {
  Bf16* parts[kParts];
  for (int part = 0; part < kParts; ++part) {
    float* units = to + part * depth;
    for (std::int64_t u = n / 2; u < depth; ++u) units[u] = 0;
    parts[part] = reinterpret_cast<Bf16*>(units);
  }
  const auto values = strided(x, step, n);
  std::int64_t first = 0;
#if defined(__AVX512BF16__)
  for (; first + 2 * W <= n; first += 2 * W) {
    Vec low = values(first, Whole{}), high = values(first + W, Whole{});
    if (__builtin_expect(any_nan(low - low + (high - high)), 0)) break;
    for (int part = 0; part < kParts; ++part) {
      const Vec low_cut = cut<nearest>(low), high_cut = cut<nearest>(high);
      const __m512bh both = _mm512_cvtne2ps_pbh(high_cut, low_cut);
      std::memcpy(parts[part] + first, &both, sizeof both);
    }
  }
#endif
  sweep(n - first, [&](std::int64_t i, auto lanes) {
    Vec rest = values(first + i, lanes);
    for (int part = 0; part < kParts; ++part) store_flushed(parts[part] + first + i, cut<nearest>(rest), lanes);
    if (__builtin_expect(!any_nan(rest), 1)) return;
    for (int part = 0; part < kParts; ++part) {  // infinity and NaN have no rest
      const Vec kept = load(parts[part] + first + i, lanes), whole = part ? Vec{} : values(first + i, lanes);
      store_flushed(parts[part] + first + i, rest == rest ? kept : whole, lanes);
    }
  });
}

// Units of the next part of two vectors of finite values, the nearest, which are left with the rest of each.
inline Vec cut_pair(Vec& even, Vec& odd) {
  const UVec first = reinterpret_cast<UVec>(cut<true>(even));
  return reinterpret_cast<Vec>(first >> 16 | reinterpret_cast<UVec>(cut<true>(odd)));
}

// n values as `depth` units of bf16; returns whether bf16 holds them all, none of them infinity or NaN.
inline bool narrow_values(const float* x, std::int64_t n, std::int64_t depth, float* to) {
  for (std::int64_t u = n / 2; u < depth; ++u) to[u] = 0;
  IVec lost{};
  Vec poison{};  // NaN where a value is not finite
  sweep(n, [&](std::int64_t i, auto lanes) {
    const Vec v = load(x + i, lanes);
    lost = lost | (bits(v) & 0xFFFF);
    poison = poison + v * 0.0f;
    store_flushed(reinterpret_cast<Bf16*>(to) + i, v, lanes);
  });
  std::int32_t any = 0;
  for (int i = 0; i < W; ++i) any |= lost[i];
  return !any && sum_lanes(poison) == 0.0f;
}

}  // namespace
