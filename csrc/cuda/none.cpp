// Compiled instead of the kernels where there is no CUDA compiler.
#include "pysora/cuda.h"

namespace pysora::cuda {

const Kernels& kernels() {
  static const Kernels none{};
  return none;
}

const char* targets() {
  return "";
}

std::string take_error() {
  return {};
}

CurrentDevice::CurrentDevice(int device) : device_(device), before_(device) {}

CurrentDevice::~CurrentDevice() = default;

}  // namespace pysora::cuda
