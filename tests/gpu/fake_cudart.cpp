// Stands in for CUDA's runtime inside a build of the extension: the host code of every launch runs as it is, and what
// it hands to the GPU goes to a function of the test, which executes the PTX that the extension carries. Memory of the
// "GPU" is one arena with gaps between allocations; what must not happen on the way to a launch is counted.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// ---- what the extension contains ----

// The layout that nvcc gives to a fat binary: a wrapper, a header, and entries of which one holds PTX as text.
struct FatBinaryWrapper {
  int magic, version;
  const char* data;
};
struct FatBinaryHeader {
  unsigned magic;
  unsigned short version, header_bytes;
  unsigned long long bytes;  // of the entries
};
struct FatBinaryEntry {
  unsigned short kind, version;
  unsigned header_bytes;
  unsigned long long bytes;
};
constexpr int kPtx = 1;

const char* find_ptx(const char* data) {
  const auto* header = reinterpret_cast<const FatBinaryHeader*>(data);
  const char *at = data + header->header_bytes, *end = at + header->bytes;
  while (at < end) {
    const auto* entry = reinterpret_cast<const FatBinaryEntry*>(at);
    if (entry->kind == kPtx) return at + entry->header_bytes;
    at += entry->header_bytes + entry->bytes;
  }
  return nullptr;
}

struct Kernel {
  std::string name;
  const char* ptx;
  std::size_t shared_limit;
};

// Kernels register before this file's own variables are made: hence functions.
std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}

// ---- the device ----

char* const kArena = reinterpret_cast<char*>(0x700000000000);  // where tests/ptx expects global memory
constexpr std::size_t kArenaBytes = std::size_t{1} << 30, kGap = 512, kDefaultShared = 48 * 1024;

struct Device {
  unsigned char* allowed = nullptr;  // one for each byte of the arena: whether it may be accessed
  std::size_t top = kGap;
  std::size_t most_shared = 163 * 1024;
  int current = 0;
} device;

std::map<std::string, int>& counts() {
  static std::map<std::string, int> all;
  return all;
}

cudaError_t last_error = cudaSuccess, next_launch = cudaSuccess;

cudaError_t fail(cudaError_t error) {
  return last_error = error;
}

// Every runtime function that allocates, waits or copies is counted under its name.
cudaError_t counted(const char* name) {
  ++counts()[name];
  return cudaSuccess;
}

struct Launch {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};
Launch configured;

using Handler = int (*)(const char* kernel, const char* ptx, const unsigned* sizes, std::size_t shared,
                        std::size_t stream, int device, void** args);
Handler handler = nullptr;

}  // namespace

// ---- for the tests ----

EXPORT void fake_reset(Handler on_launch, std::size_t most_shared) {
  if (!device.allowed) {
    constexpr int access = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (mmap(kArena, kArenaBytes, access, kind | MAP_FIXED_NOREPLACE, -1, 0) != kArena) return;
    device.allowed = static_cast<unsigned char*>(mmap(nullptr, kArenaBytes, access, kind, -1, 0));
  }
  std::memset(device.allowed, 0, device.top);
  device.top = kGap, device.most_shared = most_shared, device.current = 0;
  handler = on_launch, last_error = next_launch = cudaSuccess;
  counts().clear();
}

// Memory of the "GPU" that starts as NaN in every floating-point type; null where the arena is used up.
EXPORT void* fake_allocate(std::size_t bytes) {
  if (!device.allowed || device.top + bytes + kGap > kArenaBytes) return nullptr;
  char* p = kArena + device.top;
  std::memset(p, 0xFF, bytes);
  std::memset(device.allowed + device.top, 1, bytes);
  device.top += (bytes + 2 * kGap - 1) / kGap * kGap;
  return p;
}

EXPORT std::size_t fake_top() {
  return device.top;
}
EXPORT unsigned char* fake_allowed() {
  return device.allowed;
}
EXPORT int fake_count(const char* name) {
  return counts()[name];
}
EXPORT int fake_counts() {
  int total = 0;
  for (const auto& [name, n] : counts()) total += n;
  return total;
}
EXPORT void fake_fail_next_launch(int error) {
  next_launch = static_cast<cudaError_t>(error);
}

// ---- the runtime ----

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(const_cast<char*>(find_ptx(static_cast<FatBinaryWrapper*>(wrapper)->data)));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) {
  return 1;
}
void __cudaRegisterFunction(void** ptx, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  kernels()[host] = {name, reinterpret_cast<const char*>(ptx), kDefaultShared};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream) {
  configured = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  *grid = configured.grid, *block = configured.block, *shared = configured.shared;
  *static_cast<cudaStream_t*>(stream) = configured.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** args, std::size_t shared,
                             cudaStream_t stream) {
  if (next_launch != cudaSuccess) {
    const cudaError_t error = next_launch;
    next_launch = cudaSuccess;
    return fail(error);
  }
  const auto found = kernels().find(host);
  if (found == kernels().end()) return fail(cudaErrorInvalidDeviceFunction);
  const Kernel& kernel = found->second;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
    return fail(cudaErrorInvalidConfiguration);
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) return fail(cudaErrorInvalidConfiguration);
  if (shared > kernel.shared_limit) return fail(cudaErrorInvalidValue);
  const unsigned sizes[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  const int wrong = !handler || handler(kernel.name.c_str(), kernel.ptx, sizes, shared,
                                        reinterpret_cast<std::size_t>(stream), device.current, args);
  return wrong ? fail(cudaErrorLaunchFailure) : cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args, std::size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, args, shared, stream);
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return fail(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<std::size_t>(value) > device.most_shared) return fail(cudaErrorInvalidValue);
  found->second.shared_limit = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* id) {
  *id = device.current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int id) {
  if (id < 0 || id > 1) return fail(cudaErrorInvalidDevice);
  device.current = id;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t) {
  return "the fake runtime says no";
}

cudaError_t cudaMalloc(void**, std::size_t) {
  return counted("cudaMalloc");
}
cudaError_t cudaMallocAsync(void**, std::size_t, cudaStream_t) {
  return counted("cudaMallocAsync");
}
cudaError_t cudaFree(void*) {
  return counted("cudaFree");
}
cudaError_t cudaFreeAsync(void*, cudaStream_t) {
  return counted("cudaFreeAsync");
}
cudaError_t cudaMemcpy(void*, const void*, std::size_t, cudaMemcpyKind) {
  return counted("cudaMemcpy");
}
cudaError_t cudaMemcpyAsync(void*, const void*, std::size_t, cudaMemcpyKind, cudaStream_t) {
  return counted("cudaMemcpyAsync");
}
cudaError_t cudaMemsetAsync(void*, int, std::size_t, cudaStream_t) {
  return counted("cudaMemsetAsync");
}
cudaError_t cudaDeviceSynchronize() {
  return counted("cudaDeviceSynchronize");
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return counted("cudaStreamSynchronize");
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return counted("cudaEventSynchronize");
}

}  // extern "C"
