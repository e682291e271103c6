#pragma once
#include <cstdint>

namespace pysora {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// The block sizes of the CPU matrix products, the same for every instruction set, so that the size of a workspace is
// known before one is picked.
constexpr std::int64_t kTile = 6;    // rows of a register tile
constexpr std::int64_t kBlock = 96;  // rows of one operand that meet a block of lanes; divisible by kTile and every W
constexpr std::int64_t kLanes = 64;  // rows of the other operand, which lie in vectors' lanes, at most

constexpr int kParts = 3;  // bf16 values that make one of fp32

// out[i][e] = rows[i] . weights[e], i < rows, e < E, over K values.
struct ProductShape {
  std::int64_t rows, E, K;
  int threads;
  std::int64_t row_floats = K;  // what holds a row of either operand, at most

  // So many rows are packed at once: all of them, or what keeps the workspace small.
  std::int64_t chunk() const {
    constexpr std::int64_t kFloats = 4 << 20;
    const std::int64_t fitting = kFloats / (row_floats + 1) / kLanes * kLanes, all = ceil_div(rows, kLanes) * kLanes;
    return fitting < kLanes ? kLanes : fitting < all ? fitting : all;
  }
  std::int64_t room_floats() const { return 16 * (row_floats + 16); }  // of rows being packed
  // Of a block that is converted.
  std::int64_t weights_floats() const { return kBlock * ceil_div(row_floats, 16) * 16; }
  std::int64_t thread_floats() const { return kBlock * kLanes + room_floats() + weights_floats(); }
  std::int64_t workspace_floats() const { return chunk() * row_floats + 16 + threads * thread_floats(); }
};

}  // namespace pysora
