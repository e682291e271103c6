#pragma once
#include <cstdint>
#include <type_traits>

#include "simd.h"

// Products by the processor's matrix unit (AMX), whose registers hold 16 rows of 64 bytes: a tile of rows of units
// meets a tile of units in lanes, and each of 16x16 sums takes 16 units at once. Both operands are as `dots` in
// product.h reads them.
namespace {

template <class Unit>
#if defined(__AMX_BF16__)
constexpr bool kMatrixUnit = Unit::per > 1;
#else
constexpr bool kMatrixUnit = false;
#endif

constexpr std::int64_t kSquare = 16;  // rows, and units in a row, of a register of the matrix unit

enum class Split { none, rows, lanes, both };  // which operands are fp32 in three bf16 parts (parts.h)

#if defined(__AMX_BF16__)

// Numbers of registers must be literals. 0 to 3 hold sums, 4 and 5 rows, 6 and 7 lanes.
#define PYSORA_SQUARES(sum, row, lane) \
  if constexpr (Unit::per == 2) {      \
    _tile_dpbf16ps(sum, row, lane);    \
  } else {                             \
    _tile_dpbsud(sum, row, lane);      \
  }

// A thread that multiplies holds one: it sets the registers up, and gives them back, so that a change of threads need
// not save them.
struct MatrixUnit {
  MatrixUnit() {
    alignas(64) struct {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) shape.row_bytes[i] = 64, shape.rows[i] = kSquare;
    asm volatile("" ::"m"(shape));  // GCC 12 believes that only the first eight bytes are read
    _tile_loadconfig(&shape);
  }
  ~MatrixUnit() { _tile_release(); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;
};

// From one part of an operand to the next, in bytes.
struct PartSteps {
  std::int64_t row, lane;
};

template <bool two>
inline __attribute__((always_inline)) void load_rows(const char* rows, std::int64_t row) {
  _tile_loadd(4, rows, row);
  if constexpr (two) _tile_loadd(5, rows + kSquare * row, row);
}
template <bool two>
inline __attribute__((always_inline)) void load_lanes(const char* lanes, std::int64_t lane) {
  _tile_loadd(6, lanes, lane);
  if constexpr (two) _tile_loadd(7, lanes + 64, lane);
}
template <class Unit, bool rows_two, bool lanes_two>
inline __attribute__((always_inline)) void multiply_loaded() {
  PYSORA_SQUARES(0, 4, 6)
  if constexpr (lanes_two) {
    PYSORA_SQUARES(1, 4, 7)
  }
  if constexpr (rows_two) {
    PYSORA_SQUARES(2, 5, 6)
    if constexpr (lanes_two) {
      PYSORA_SQUARES(3, 5, 7)
    }
  }
}

// One or two tiles of rows times one or two of lanes, over `steps` times 16 units of each part. Strides in bytes.
template <class Unit, bool rows_two, bool lanes_two, bool add, Split split>
void multiply_squares(const char* rows, std::int64_t row, const char* lanes, std::int64_t lane, std::int64_t steps,
                      char* sums, std::int64_t sum, const PartSteps* parts) {
  if constexpr (add) {
    _tile_loadd(0, sums, sum);
    if constexpr (lanes_two) _tile_loadd(1, sums + 64, sum);
    if constexpr (rows_two) _tile_loadd(2, sums + kSquare * sum, sum);
    if constexpr (rows_two && lanes_two) _tile_loadd(3, sums + kSquare * sum + 64, sum);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t s = 0; s < steps; ++s, rows += 64, lanes += kSquare * lane) {
    const auto rows_of = [&](int part) { load_rows<rows_two>(rows + (part ? part * parts->row : 0), row); };
    const auto lanes_of = [&](int part) { load_lanes<lanes_two>(lanes + (part ? part * parts->lane : 0), lane); };
    const auto multiply = [] { multiply_loaded<Unit, rows_two, lanes_two>(); };
    if constexpr (split == Split::both) {  // six products: the other three are below what fp32 holds of the sum
      rows_of(1), lanes_of(1), multiply();
      rows_of(0), multiply();
      lanes_of(2), multiply();
      lanes_of(0), multiply();
      rows_of(1), multiply();
      rows_of(2), multiply();
    } else if constexpr (split == Split::rows) {
      lanes_of(0), rows_of(2), multiply();
      rows_of(1), multiply();
      rows_of(0), multiply();
    } else if constexpr (split == Split::lanes) {
      rows_of(0), lanes_of(2), multiply();
      lanes_of(1), multiply();
      lanes_of(0), multiply();
    } else {
      rows_of(0), lanes_of(0), multiply();
    }
  }
  _tile_stored(0, sums, sum);
  if constexpr (lanes_two) _tile_stored(1, sums + 64, sum);
  if constexpr (rows_two) _tile_stored(2, sums + kSquare * sum, sum);
  if constexpr (rows_two && lanes_two) _tile_stored(3, sums + kSquare * sum + 64, sum);
}

// As below, over whole steps of 16 units.
template <class Unit, int V, bool add, Split split = Split::none>
void multiply_steps(const float* rows, std::int64_t row, const float* lanes, std::int64_t stride, std::int64_t steps,
                    std::int64_t count, float* sums, const PartSteps* parts = nullptr) {
  asm volatile("" ::: "memory");  // GCC does not know that the loads below read memory
  constexpr bool lanes_two = V > 1;
  for (std::int64_t i = 0; i < count; i += 2 * kSquare)
    for (int v = 0; v < V; v += lanes_two ? 2 : 1) {
      const char* first = reinterpret_cast<const char*>(rows + i * row);
      const char* columns = reinterpret_cast<const char*>(lanes + v * W);
      char* to = reinterpret_cast<char*>(sums + (i * V + v) * W);
      if (count - i >= 2 * kSquare) {
        multiply_squares<Unit, true, lanes_two, add, split>(first, 4 * row, columns, 4 * stride, steps, to, V * 64,
                                                            parts);
      } else {
        multiply_squares<Unit, false, lanes_two, add, split>(first, 4 * row, columns, 4 * stride, steps, to, V * 64,
                                                             parts);
      }
    }
}

// sums[i][lane] (+)= rows[i] . lanes for `count` rows, a multiple of 16, over `depth` units. `row` and `stride` count
// units; sums is [count][V * W].
template <class Unit, int V, bool add>
void multiply_squares(const float* rows, std::int64_t row, const float* lanes, std::int64_t stride, std::int64_t depth,
                      std::int64_t count, float* sums) {
  const std::int64_t steps = depth / kSquare, rest = depth % kSquare;
  if (!depth && !add) std::memset(sums, 0, static_cast<std::size_t>(count * V * W) * sizeof(float));
  if (steps) multiply_steps<Unit, V, add>(rows, row, lanes, stride, steps, count, sums);
  if (!rest) return;
  // The last units, with zeros behind them.
  alignas(64) float last_rows[2 * kSquare * kSquare] = {}, last_lanes[kSquare * V * W] = {};
  rows += depth - rest, lanes += (depth - rest) * stride;
  for (std::int64_t d = 0; d < rest; ++d)
    for (int v = 0; v < V; ++v) store(last_lanes + (d * V + v) * W, load(lanes + d * stride + v * W));
  for (std::int64_t i = 0; i < count; i += 2 * kSquare) {
    const std::int64_t n = count - i < 2 * kSquare ? count - i : 2 * kSquare;
    for (std::int64_t r = 0; r < n; ++r)
      store(last_rows + r * kSquare,
            _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << rest) - 1), rows + (i + r) * row));
    float* to = sums + i * V * W;
    if (add || steps) {
      multiply_steps<Unit, V, true>(last_rows, kSquare, last_lanes, V * W, 1, n, to);
    } else {
      multiply_steps<Unit, V, false>(last_rows, kSquare, last_lanes, V * W, 1, n, to);
    }
  }
}

#undef PYSORA_SQUARES

#else

struct MatrixUnit {
  ~MatrixUnit() {}  // or its variable would be one that nobody uses
};

#endif

}  // namespace
