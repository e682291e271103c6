#pragma once
#include <type_traits>

#include "pysora/parallel.h"
#include "pysora/product.h"
#include "units.h"

// Matrix products of which one operand lies in the vectors' lanes (units.h).
namespace {

using pysora::ProductShape;

constexpr std::int64_t kCached = 1 << 18;  // floats of weights that stay in a core's cache

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
