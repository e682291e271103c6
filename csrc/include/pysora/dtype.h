#pragma once

namespace pysora {

enum class Dtype { f32, bf16 };

// Values of either dtype, side by side in memory; data is null where an optional operand is left out.
struct Values {
  const void* data;
  Dtype dtype;
};

}  // namespace pysora
