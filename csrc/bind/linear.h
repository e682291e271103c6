#pragma once
#include "tensor.h"

namespace pysora {

// All but the weight, the workspace and the threads of a linear layer; weight has two dimensions.
void fill(LinearParams& p, Call& call, const Tensor& x, const Tensor& weight, py::handle bias,
          const std::string& epilogue, py::handle residual, py::handle gate, py::handle index, const Tensor& out);

}  // namespace pysora
