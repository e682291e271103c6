#pragma once
#include <cstdint>

namespace pysora {

// The block sizes of the CPU matrix products, the same for every instruction set, so that the size of a workspace is
// known before one is picked.
constexpr std::int64_t kPanel = 64;  // columns of a packed panel
constexpr std::int64_t kRows = 96;   // rows of a block
constexpr std::int64_t kTile = 6;    // rows of a register tile; divides kRows

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace pysora
