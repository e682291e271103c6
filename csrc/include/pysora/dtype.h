#pragma once

namespace pysora {

enum class Dtype { f32, bf16, f16 };  // f16 on a GPU alone

// Values of any dtype, side by side in memory; data is null where an optional operand is left out.
struct Values {
  const void* data;
  Dtype dtype;
};

}  // namespace pysora
