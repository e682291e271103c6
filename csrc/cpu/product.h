#pragma once
#include <type_traits>

#include "matrix_unit.h"
#include "pysora/parallel.h"
#include "pysora/product.h"
#include "rows.h"

// Matrix products of which one operand lies in the vectors' lanes. Both are held in 4-byte units along the summed
// dimension: one fp32 value, or a pair of bf16 values for `vdpbf16ps`. A register tile is kTile rows of units, read one
// by one and spread over all lanes, times a block of rows that was transposed, so that each has a lane: results need no
// sum across lanes, and weights are read as they lie in memory.
namespace {

using pysora::kBlock;
using pysora::kLanes;
using pysora::kParts;
using pysora::kTile;
using pysora::ProductShape;

constexpr int kVectors = W == 16 ? 4 : 2;  // with kTile rows their sums fill the registers
// Sums of so many fp32 products are added to the total: the error of one long chain grows with the root of its length.
// That of bf16 products stays far below their operands' rounding.
template <class Unit>
constexpr std::int64_t kRun = Unit::per == 1 ? 256 : INT64_MAX;
static_assert(kVectors * W <= kLanes && kBlock % kTile == 0 && kBlock % W == 0, "block sizes");

constexpr std::int64_t kCached = 1 << 18;  // floats of weights that stay in a core's cache

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

// Which way a vector of results runs.
enum class Along { weights, rows };

struct Part {  // names an fp32 operand in three bf16 parts (parts.h)
  std::uint16_t bits;
};
#if defined(__AMX_BF16__)
template <>
struct UnitOf<Part> {
  using Unit = Bf16Unit;
};
#endif

// out[i][e] = rows[i] . weights[e], the rows in lanes. copy_row(i, place) and copy_weight(e, place) write a row's
// units; with T = Part one of them writes those of each part of its row in turn: of the rows, or, along rows, of the
// weights. Along weights, finish(i, e, y, lanes) takes `lanes` results of row i, from e on; along rows, finish(e, i, y,
// lanes) takes those of weight e, from i on, without transposing them.
template <class T, Along along = Along::weights>
struct Product {
  using Unit = typename UnitOf<T>::Unit;
  using Elem = typename Unit::Elem;

  const ProductShape& shape;
  float* workspace;
  const T* weights;            // null where they have to be copied
  std::int64_t weight_stride;  // between rows, in elements

  static constexpr bool kSplit = std::is_same<T, Part>::value;
  const std::int64_t depth = depth_of(shape.K);
  const std::int64_t row_depth = kSplit && along == Along::weights ? kParts * depth : depth;
  const std::int64_t weight_depth = kSplit && along == Along::rows ? kParts * depth : depth;
  const bool in_place =
      weights && std::is_same<T, Elem>::value && shape.K % Unit::per == 0 && weight_stride % Unit::per == 0;

  // A part's units; whole registers of the matrix unit, so that the next one begins with a line of the cache.
  static std::int64_t depth_of(std::int64_t K) {
    return kSplit ? ceil_div(units<Unit>(K), kSquare) * kSquare : units<Unit>(K);
  }

  // A thread's part of the workspace.
  struct Scratch {
    float *results, *room, *weights;
  };
  Scratch scratch(int worker) const {
    float* at = workspace + worker * shape.thread_floats();
    return {at, at + kBlock * kLanes, at + kBlock * kLanes + shape.room_floats()};
  }

  template <int NV, class Finish>
  void block(std::int64_t first, std::int64_t n, const float* lanes, std::int64_t e, std::int64_t count,
             const float* units, std::int64_t stride, float* results, const Finish& finish) const {
    if constexpr (kMatrixUnit<Unit>) {
      if constexpr (kSplit) {  // the room for a block's rows holds some of no use
        constexpr Split split = along == Along::rows ? Split::rows : Split::lanes;
        part_products<Unit, NV, false, split>(units, stride, depth, lanes, NV * W, depth, depth,
                                              ceil_div(count, kSquare) * kSquare, results);
      } else {
        products<Unit, NV, false>(units, stride, lanes, NV * W, depth, count, results);
      }
    } else {
      sum<NV>(first, n, lanes, e, count, units, stride, results, finish);
      if (along == Along::rows && n == NV * W) return;
    }
    if (along == Along::rows) {    // all that lies side by side at once: lines of the cache are written whole
      const Finish held = finish;  // what is written might change the other one, the compiler believes
      auto each = [&](std::int64_t i, std::int64_t v, auto lanes) __attribute__((always_inline)) {
        held(e + i, first + v * W, load(results + (i * NV + v) * W), lanes);
      };
      for (std::int64_t i = 0; i < count; ++i)
        if (n == NV * W) {
          for (std::int64_t v = 0; v < NV; ++v) each(i, v, Whole{});
        } else {
          for (std::int64_t v = 0; v * W < n; ++v) with_lanes(n - v * W, [&](auto lanes) { each(i, v, lanes); });
        }
      return;
    }
    for (std::int64_t v = 0; v * W < n; ++v)
      for (std::int64_t i = 0; i < count; i += W) {
        Vec m[W];
        for (int r = 0; r < W; ++r) m[r] = load(results + ((i + r) * NV + v) * W);
        transpose(m);
        with_lanes(count - i, [&](auto counted) {
          for (std::int64_t r = 0; r < W && v * W + r < n; ++r) finish(first + v * W + r, e + i, m[r], counted);
        });
      }
  }

  // Fills `results`, or finishes them from the registers where whole vectors of rows are wanted.
  template <int NV, class Finish>
  void sum(std::int64_t first, std::int64_t n, const float* lanes, std::int64_t e, std::int64_t count,
           const float* units, std::int64_t stride, float* results, const Finish& finish) const {
    tiles(count, [&](auto R, std::int64_t i) {
      float* totals = results + i * NV * W;  // in memory: beside a run's sums they would not fit the registers
      for (std::int64_t d = 0;; d += kRun<Unit>) {
        const bool last = depth - d <= kRun<Unit>;
        typename Unit::Sum sums[R][NV] = {};
        dots<Unit>(sums, units + i * stride + d, stride, 1, lanes + d * NV * W, NV * W, last ? depth - d : kRun<Unit>);
        const bool from_registers = last && along == Along::rows && n == NV * W;
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < NV; ++v) {
            float* total = totals + (r * NV + v) * W;
            Vec sum = reinterpret_cast<Vec>(sums[r][v]);
            if (d > 0) sum = sum + load(total);
            if (from_registers) {
              finish(e + i + r, first + v * W, sum, Whole{});
            } else {
              store(total, sum);
            }
          }
        if (last) return true;
      }
    });
  }

  // Calls f with the lanes that count where n results are left.
  template <class F>
  static void with_lanes(std::int64_t n, const F& f) {
    if (n >= W) return f(Whole{});
    f(n);
  }

  template <class CopyRow, class CopyWeight, class Finish>
  void run(const CopyRow& copy_row, const CopyWeight& copy_weight, const Finish& finish) const {
    run(copy_row, copy_weight, finish, [] { return true; });
  }

  // Leaves off, with results missing, when go_on() is false.
  template <class CopyRow, class CopyWeight, class Finish, class GoOn>
  void run(const CopyRow& copy_row, const CopyWeight& copy_weight, const Finish& finish, const GoOn& go_on) const {
    if (shape.E == 0) return;
    constexpr std::int64_t at_once = kVectors * W;
    float* packed = workspace + shape.threads * shape.thread_floats();
    for (std::int64_t start = 0; start < shape.rows; start += shape.chunk()) {
      const std::int64_t rows = shape.rows - start < shape.chunk() ? shape.rows - start : shape.chunk();
      const std::int64_t row_blocks = ceil_div(rows, at_once), weight_blocks = ceil_div(shape.E, kBlock);
      auto rows_of = [&](std::int64_t b) { return rows - b * at_once < at_once ? rows - b * at_once : at_once; };
      pysora::parallel_for(shape.threads, row_blocks, [&](std::int64_t b, int worker) {
        if (!go_on()) return;
        const std::int64_t first = start + b * at_once;
        vectors_for(rows_of(b), [&](auto NV) {
          to_lanes<NV>(rows_of(b), row_depth, scratch(worker).room, packed + b * at_once * row_depth,
                       [&](std::int64_t i, float* place) { copy_row(first + i, place); });
        });
      });
      // Blocks of weights stay in the cache while the rows of their task pass by. The matrix unit needs several: one
      // meets a block of rows in less time than that takes to come from memory.
      const std::int64_t fitting = kCached / (kBlock * weight_depth + 1);
      const std::int64_t most = kMatrixUnit<Unit> && in_place && fitting > 1 ? fitting : 1;
      const std::int64_t even = ceil_div(weight_blocks, shape.threads);
      const std::int64_t blocks = ceil_div(weight_blocks, most < even ? most : even);
      // As many for each thread, as far as whole squares go; vectors want whole tiles.
      constexpr std::int64_t grain = kMatrixUnit<Unit> ? kSquare : kBlock;
      const std::int64_t share_of_E = ceil_div(shape.E, ceil_div(blocks, shape.threads) * shape.threads);
      const std::int64_t pass = ceil_div(share_of_E, grain) * grain, passes = ceil_div(shape.E, pass);
      const std::int64_t wanted =
          ceil_div((kSplit ? 2 : 4) * shape.threads, passes);  // each makes parts of its weights
      const std::int64_t groups = wanted < row_blocks ? wanted : row_blocks, share = ceil_div(row_blocks, groups);
      pysora::parallel_for(shape.threads, passes * groups, [&](std::int64_t task, int worker) {
        if (!go_on()) return;
        const Scratch s = scratch(worker);
        const MatrixUnit held;
        const std::int64_t e = task / groups * pass, count = shape.E - e < pass ? shape.E - e : pass;
        const float* units = s.weights;
        std::int64_t stride = weight_depth;
        if (in_place) {
          units = reinterpret_cast<const float*>(weights + e * weight_stride), stride = weight_stride / Unit::per;
        } else {
          for (std::int64_t i = 0; i < count; ++i) {
            if (depth) s.weights[i * weight_depth + weight_depth - 1] = 0;
            copy_weight(e + i, s.weights + i * weight_depth);
          }
        }
        for (std::int64_t b = task % groups * share; b < row_blocks && b < (task % groups + 1) * share; ++b)
          vectors_for(rows_of(b), [&](auto NV) {
            for (std::int64_t i = 0; i < count; i += kBlock)
              block<NV>(start + b * at_once, rows_of(b), packed + b * at_once * row_depth, e + i,
                        count - i < kBlock ? count - i : kBlock, units + i * stride, stride, s.results, finish);
          });
      });
    }
  }
};

}  // namespace
