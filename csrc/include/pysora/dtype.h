#pragma once

namespace pysora {

enum class Dtype { f32, bf16 };

}  // namespace pysora
