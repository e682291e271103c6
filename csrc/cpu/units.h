#pragma once
#include <type_traits>

#include "matrix_unit.h"
#include "pysora/product.h"
#include "rows.h"

// Operands of matrix products in 4-byte units along the summed dimension: one fp32 value, a pair of bf16 values for
// `vdpbf16ps`, or four of 8 bits. A register tile is kTile rows of units, read one by one and spread over all lanes,
// times a block of rows that was transposed, so that each has a lane: results need no sum across lanes, and weights are
// read as they lie in memory.
namespace {

using pysora::kBlock;
using pysora::kLanes;
using pysora::kParts;
using pysora::kTile;

constexpr int kVectors = W == 16 ? 4 : 2;  // with kTile rows their sums fill the registers
// Sums of so many fp32 products are added to the total: the error of one long chain grows with the root of its length.
// That of bf16 products stays far below their operands' rounding.
template <class Unit>
constexpr std::int64_t kRun = Unit::per == 1 ? 256 : INT64_MAX;
static_assert(kVectors * W <= kLanes && kBlock % kTile == 0 && kBlock % W == 0, "block sizes");

// How values are held in units: Elem in memory, `per` of them in a unit, `dot` multiplies and adds to a Sum.
struct F32Unit {
  using Elem = float;
  using Sum = Vec;
  static constexpr int per = 1;
  static Vec dot(Vec sum, Vec a, Vec b) { return fma(a, b, sum); }
};

#if defined(__AVX512BF16__)
struct Bf16Unit {
  using Elem = Bf16;
  using Sum = Vec;
  static constexpr int per = 2;
  static Vec dot(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

#if defined(__AVX512VNNI__)
struct Int8Unit {  // the row that is spread over the lanes is signed, those in the lanes are not
  using Elem = std::int8_t;
  using Sum = IVec;  // GCC 12 keeps sums that change between integers and floats in two registers
  static constexpr int per = 4;
  static IVec dot(IVec sum, Vec a, Vec b) {
    const __m512i total =
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(b), reinterpret_cast<__m512i>(a));
    return reinterpret_cast<IVec>(total);
  }
};
#endif

// The unit for inputs of type T: bf16 and int8 values are multiplied as they are where the processor can, else as fp32.
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

#if defined(__AVX512VNNI__)
template <>
struct UnitOf<std::int8_t> {
  using Unit = Int8Unit;
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
inline void convert(std::int8_t x, float& y) {
  y = x;
}
inline void convert(std::int8_t x, std::int8_t& y) {
  y = x;
}

// sum[r][v] += one[r * row + d * step] * lanes[d * stride][v] for d < depth: a unit of one operand meets whole vectors
// of the other. Offsets count units. With kTile rows and V = 4 (AVX-512) or 2 vectors the sums fill the registers.
template <class Unit, int R, int V>
inline __attribute__((always_inline)) void dots(typename Unit::Sum (&sum)[R][V], const float* one, std::int64_t row,
                                                std::int64_t step, const float* lanes, std::int64_t stride,
                                                std::int64_t depth) {
  for (std::int64_t d = 0; d < depth; ++d) {
    Vec columns[V];
    for (int v = 0; v < V; ++v) columns[v] = load(lanes + d * stride + v * W);
    for (int r = 0; r < R; ++r) {
      std::int32_t unit;
      std::memcpy(&unit, one + r * row + d * step, 4);
      const Vec x = from_bits(unit - IVec{});
      for (int v = 0; v < V; ++v) sum[r][v] = Unit::dot(sum[r][v], x, columns[v]);
    }
  }
}

// Calls f(std::integral_constant<int, R>, first) for tiles of kTile and one smaller one that cover [0, n), until one
// returns false; returns whether none did.
template <class F>
bool tiles(std::int64_t n, const F& f) {
  static_assert(kTile == 6, "the cases below");
  std::int64_t i = 0;
  for (; i + kTile <= n; i += kTile)
    if (!f(std::integral_constant<int, kTile>{}, i)) return false;
  switch (n - i) {
    case 1:
      return f(std::integral_constant<int, 1>{}, i);
    case 2:
      return f(std::integral_constant<int, 2>{}, i);
    case 3:
      return f(std::integral_constant<int, 3>{}, i);
    case 4:
      return f(std::integral_constant<int, 4>{}, i);
    case 5:
      return f(std::integral_constant<int, 5>{}, i);
    default:
      return true;
  }
}

// sums[i][lane] (+)= rows[i] . lanes for `count` rows over `depth` units, by the matrix unit, and by vectors what has
// too few rows for it. `row` and `stride` count units; sums is [count][V * W].
template <class Unit, int V, bool add>
void products(const float* rows, std::int64_t row, const float* lanes, std::int64_t stride, std::int64_t depth,
              std::int64_t count, float* sums) {
#if defined(__AMX_BF16__)
  const std::int64_t square = count / kSquare * kSquare;
  if (square) multiply_squares<Unit, V, add>(rows, row, lanes, stride, depth, square, sums);
  if (square == count) return;
  if (!add && square) {  // some rows twice
    const std::int64_t i = count - kSquare;
    return multiply_squares<Unit, V, add>(rows + i * row, row, lanes, stride, depth, kSquare, sums + i * V * W);
  }
  tiles(count - square, [&](auto R, std::int64_t i) {
    typename Unit::Sum sum[R][V] = {};
    float* to = sums + (square + i) * V * W;
    if (add) std::memcpy(sum, to, sizeof sum);
    dots<Unit>(sum, rows + (square + i) * row, row, 1, lanes, stride, depth);
    std::memcpy(to, sum, sizeof sum);
    return true;
  });
#else
  static_assert(kMatrixUnit<Unit>, "no matrix unit");
#endif
}

// As `products`, of fp32 values in parts: part i of a row begins i * row_part units after it, of the lanes likewise.
// For whole steps of kSquare units and whole squares of rows.
template <class Unit, int V, bool add, Split split>
void part_products(const float* rows, std::int64_t row, std::int64_t row_part, const float* lanes, std::int64_t stride,
                   std::int64_t lane_part, std::int64_t depth, std::int64_t count, float* sums) {
#if defined(__AMX_BF16__)
  const PartSteps parts{4 * row_part, 4 * lane_part * stride};
  multiply_steps<Unit, V, add, split>(rows, row, lanes, stride, depth / kSquare, count, sums, &parts);
#else
  static_assert(kMatrixUnit<Unit>, "no matrix unit");
#endif
}

// Calls f(std::integral_constant<int, NV>) with the fewest vectors that have lanes for n rows, n <= kVectors * W.
template <class F>
void vectors_for(std::int64_t n, const F& f) {
  if (n <= W) return f(std::integral_constant<int, 1>{});
  if (n <= 2 * W) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, kVectors>{});
}

// Puts n rows into lanes: `to` is [depth][NV * W], 0 where there is no row. copy_row(i, place) writes row i into
// `depth` units, of which the last is 0 before. room: W rows of depth units, rounded up to whole vectors.
template <int NV, class CopyRow>
void to_lanes(std::int64_t n, std::int64_t depth, float* room, float* to, const CopyRow& copy_row) {
  const std::int64_t width = ceil_div(depth, W) * W;
  for (std::int64_t v = 0; v < NV; ++v) {
    for (std::int64_t r = 0; r < W; ++r) {
      float* line = room + r * width;
      if (v * W + r < n) {
        if (depth) line[depth - 1] = 0;
        copy_row(v * W + r, line);
      } else {
        std::memset(line, 0, static_cast<std::size_t>(width) * sizeof(float));
      }
    }
    for (std::int64_t d = 0; d < depth; d += W) {
      Vec m[W];
      for (int r = 0; r < W; ++r) m[r] = load(room + r * width + d);
      transpose(m);
      for (int r = 0; r < W && d + r < depth; ++r) store(to + ((d + r) * NV + v) * W, m[r]);
    }
  }
}

// Copies K values of type T that lie `step` apart into units.
template <class Elem, class T>
void copy_values(const T* from, std::int64_t step, std::int64_t K, float* to) {
  Elem* elems = reinterpret_cast<Elem*>(to);
  if (std::is_same<T, Elem>::value && step == 1) {  // a call of the library's memcpy costs more than a short row
    constexpr std::int64_t at_once = W * 4 / static_cast<std::int64_t>(sizeof(Elem));
    std::int64_t i = 0;
    for (; i + at_once <= K; i += at_once) std::memcpy(elems + i, from + i, W * 4);
    if (i < K) std::memcpy(elems + i, from + i, static_cast<std::size_t>(K - i) * sizeof(Elem));
  } else {
    for (std::int64_t i = 0; i < K; ++i) convert(from[i * step], elems[i]);
  }
}

}  // namespace
