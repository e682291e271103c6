#pragma once
#include <string>

#include "pysora/ops.h"

struct CUstream_st;  // what the toolkit's cudaStream_t points to

namespace pysora::cuda {

using Stream = CUstream_st*;

// One launcher per op. It puts its kernels on the stream and returns: it allocates nothing and waits for nothing.
struct Kernels {
#define PYSORA_OP(name, Params) void (*name)(const Params&, Stream);
#define PYSORA_GPU_OP PYSORA_OP
#include "pysora/ops.def"
};

const Kernels& kernels();  // all null in an extension that was built without a CUDA compiler
const char* targets();     // the architectures of the kernels, as nvcc names them; empty without
std::string take_error();  // the last error of this thread's launches, which is forgotten then; empty where none

// Makes a device the current one, as launches need it, and at its end again the one before.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int device_, before_;
};

}  // namespace pysora::cuda
