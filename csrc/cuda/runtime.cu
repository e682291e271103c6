// The table of launchers, and what bindings need of the CUDA runtime.
#include <cuda_runtime_api.h>

#include "pysora/cuda.h"

namespace pysora::cuda {

#define PYSORA_OP(name, Params) void name(const Params&, cudaStream_t);
#define PYSORA_GPU_OP PYSORA_OP
#include "pysora/ops.def"

const Kernels& kernels() {
  static const Kernels table = {
#define PYSORA_OP(name, Params) name,
#define PYSORA_GPU_OP PYSORA_OP
#include "pysora/ops.def"
  };
  return table;
}

const char* targets() {
  return PYSORA_CUDA_TARGETS;
}

std::string take_error() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

CurrentDevice::CurrentDevice(int device) : device_(device), before_(device) {
  if (cudaGetDevice(&before_) == cudaSuccess && before_ != device_) cudaSetDevice(device_);
}

CurrentDevice::~CurrentDevice() {
  if (before_ != device_) cudaSetDevice(before_);
}

}  // namespace pysora::cuda
