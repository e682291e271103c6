// Stands in for CUDA's runtime where the host code of one kernel is tested: a launch is handed to a function of the
// test.
#include <cuda_runtime_api.h>

#include <map>
#include <string>

namespace {

struct Launch {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};

using Handler = void (*)(const char* kernel, const unsigned* sizes, std::size_t shared, std::size_t stream,
                         void** args);

Launch next;
Handler handler;

std::map<const void*, int>& shared_limits() {  // where a kernel was given more than the usual 48 KiB
  static std::map<const void*, int> all;
  return all;
}

std::map<const void*, std::string>& names() {  // kernels register before this file's variables are made
  static std::map<const void*, std::string> all;
  return all;
}

}  // namespace

extern "C" {

void set_handler(Handler h) {
  handler = h;
}

void** __cudaRegisterFatBinary(void* binary) {
  static void* kept;
  kept = binary;
  return &kept;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  names()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream) {
  next = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  *grid = next.grid, *block = next.block, *shared = next.shared, *static_cast<cudaStream_t*>(stream) = next.stream;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) shared_limits()[f] = value;
  return value <= 99 << 10 ? cudaSuccess : cudaErrorInvalidValue;  // the least of the cards from sm_80 on
}
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** args, std::size_t shared, cudaStream_t stream) {
  const auto limit = shared_limits().find(f);
  const bool much = shared > static_cast<std::size_t>(limit == shared_limits().end() ? 48 << 10 : limit->second);
  if (much || shared > 99 << 10) return cudaErrorInvalidValue;  // nothing runs, and results stay as they were
  const unsigned sizes[] = {g.x, g.y, g.z, b.x, b.y, b.z};
  handler(names().at(f).c_str(), sizes, shared, reinterpret_cast<std::size_t>(stream), args);
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(f));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void** args, std::size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(f, g, b, args, shared, stream);
}

}  // extern "C"
