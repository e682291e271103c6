#pragma once
#include "product.h"

// Rounding rows of values to 8-bit integers, each row by a scale of its own.
namespace {

using Int8 = UnitOf<std::int8_t>::Unit;
// `vpdpbusd` multiplies unsigned by signed bytes: rows in the lanes are held with 128 added, which is taken off the
// sums.
constexpr std::int32_t kOffset = Int8::per == 4 ? 128 : 0;

// The n values from x on that lie `step` apart, as a function of the first of W of them.
template <class T>
auto strided(const T* x, std::int64_t step, std::int64_t n) {
  return [=](std::int64_t i, auto lanes) {
    if (step == 1) return load(x + i, lanes);
    Vec v{};
    for (int j = 0; j < W && i + j < n; ++j) v[j] = to_float(x[(i + j) * step]);
    return v;
  };
}

// Writes n values, given W at a time by values(first, lanes), as integers up to 127 plus `offset` in units of Int8.
// Returns what 1 stands for; NaN where a value is not finite.
template <std::int32_t offset, class Values>
float quantize(const Values& values, std::int64_t n, float* place) {
  Vec largest{}, poison{};  // NaN where a value is not finite, else 0
  sweep(n, [&](std::int64_t i, auto lanes) {
    const Vec v = values(i, lanes);
    largest = max(largest, v < 0.0f ? -v : v);
    poison = poison + v * 0.0f;
  });
  float top = 0;
  for (int j = 0; j < W; ++j) top = largest[j] > top ? largest[j] : top;
  const float inverse = top > 0 ? 127.0f / top : 0.0f;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  sweep(n, [&](std::int64_t i, auto lanes) {
    const Vec shifted = values(i, lanes) * inverse + magic;
    if constexpr (Int8::per == 4) {
      typedef std::uint8_t Bytes __attribute__((vector_size(W)));
      const Bytes q = __builtin_convertvector(reinterpret_cast<UVec>(bits(shifted) - bits(magic) + offset), Bytes);
      char* bytes = reinterpret_cast<char*>(place) + i;
      if constexpr (std::is_same<decltype(lanes), Whole>::value) {
        std::memcpy(bytes, &q, W);
      } else {
        std::memcpy(bytes, &q, static_cast<std::size_t>(lanes));
      }
    } else {
      store(place + i, shifted - magic, lanes);
    }
  });
  return top / 127.0f + sum_lanes(poison);
}

// What `kOffset` adds to the sums of products with this row of n integers.
inline std::int32_t offset_sum(const std::int8_t* row, std::int64_t n) {
  std::int32_t sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += row[d];
  return kOffset * sum;
}

}  // namespace
