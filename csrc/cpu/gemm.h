#pragma once
#include "pysora/gemm_shape.h"
#include "simd.h"

// Matrix products on packed operands. An operand is a row of 4-byte units along the summed dimension: one fp32 value,
// or a pair of bf16 values for `vdpbf16ps`. Rows of A are contiguous; B is packed in panels of kPanel columns,
// [unit][column].
namespace {

using pysora::ceil_div;
using pysora::kPanel;
using pysora::kRows;
using pysora::kTile;

// How values are held in units: Elem in memory, `per` of them in a unit, `dot` multiplies and adds.
struct F32Unit {
  using Elem = float;
  static constexpr int per = 1;
  static Vec dot(Vec sum, Vec a, Vec b) { return fma(a, b, sum); }
};

#if defined(__AVX512BF16__)
struct Bf16Unit {
  using Elem = Bf16;
  static constexpr int per = 2;
  static Vec dot(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// The unit for inputs of type T: bf16 values are multiplied as they are where the processor can, else as fp32.
template <class T>
struct UnitOf {
  using Unit = F32Unit;
};
#if defined(__AVX512BF16__)
template <>
struct UnitOf<Bf16> {
  using Unit = Bf16Unit;
};
#endif

template <class Unit>
std::int64_t units(std::int64_t depth) {
  return ceil_div(depth, Unit::per);
}

template <class T, class Elem>
void convert(T x, Elem& y) {
  from_float(to_float(x), y);
}
inline void convert(Bf16 x, Bf16& y) {
  y = x;
}

// Where element (depth, column) of B lies in its panel.
template <class Unit>
std::int64_t panel_index(std::int64_t depth, std::int64_t column) {
  return (depth / Unit::per * kPanel + column) * Unit::per + depth % Unit::per;
}

// C[kTile][V vectors] = keep[row] * C + A B; keep null stands for zeros.
template <class Unit, int V>
void tile(const float* a, std::int64_t a_stride, const float* b, std::int64_t depth, float* c, std::int64_t c_stride,
          const float* keep) {
  Vec sum[kTile][V] = {};
  for (std::int64_t d = 0; d < depth; ++d) {
    Vec columns[V];
    for (int v = 0; v < V; ++v) columns[v] = load(b + d * kPanel + v * W);
    for (int r = 0; r < kTile; ++r) {
      std::int32_t unit;
      std::memcpy(&unit, a + r * a_stride + d, 4);
      const Vec row = from_bits(unit - IVec{});
      for (int v = 0; v < V; ++v) sum[r][v] = Unit::dot(sum[r][v], row, columns[v]);
    }
  }
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < V; ++v) {
      float* place = c + r * c_stride + v * W;
      store(place, keep ? fma(load(place), splat(keep[r]), sum[r][v]) : sum[r][v]);
    }
}

// The same for any number of rows (rounded up to kTile: buffers have room) and the first `columns` columns of a panel
// (rounded up to whole vectors). Strides and depth count units; those of C count floats.
template <class Unit>
void multiply(const void* a_units, std::int64_t a_stride, const void* b_units, std::int64_t depth, float* c,
              std::int64_t c_stride, std::int64_t rows, std::int64_t columns, const float* keep = nullptr) {
  constexpr int V = W == 16 ? 4 : 2;  // with kTile rows the sums fill the registers
  const float* a = static_cast<const float*>(a_units);
  const float* b = static_cast<const float*>(b_units);
  const std::int64_t vectors = ceil_div(columns, W);
  for (std::int64_t r = 0; r < rows; r += kTile) {
    const float* factor = keep ? keep + r : nullptr;
    std::int64_t v = 0;
    for (; v + V <= vectors; v += V)
      tile<Unit, V>(a + r * a_stride, a_stride, b + v * W, depth, c + r * c_stride + v * W, c_stride, factor);
    for (; v < vectors; ++v)
      tile<Unit, 1>(a + r * a_stride, a_stride, b + v * W, depth, c + r * c_stride + v * W, c_stride, factor);
  }
}

}  // namespace
