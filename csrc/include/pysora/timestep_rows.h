#pragma once
#include <cstdint>

#include "pysora/dtype.h"

namespace pysora {

// A table [U, ...] with a row for each of U distinct timesteps, and which row each token takes.
struct TimestepRows {
  Values first;               // row 0; no data where there is no table
  std::int64_t stride;        // between rows, in elements
  std::int64_t U;             // rows; an index beyond them is refused, where it lies on a GPU the token becomes NaN
  const std::int32_t* index;  // [B, L], the row of each token; null: sample b takes row b * per_sample
  std::int64_t index_strides[2];
  std::int64_t per_sample;  // 0 or 1

  std::int64_t row(std::int64_t b, std::int64_t l) const {
    return index ? index[b * index_strides[0] + l * index_strides[1]] : b * per_sample;
  }
};

}  // namespace pysora
