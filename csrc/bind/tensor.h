#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "pysora/cpu.h"
#include "pysora/cuda.h"
#include "pysora/dlpack.h"
#include "pysora/dtype.h"
#include "pysora/timestep_rows.h"

namespace pysora {

namespace py = pybind11;

// Memory described by hand, for a torch without DLPack's exchange table and for tests.
struct Raw {
  std::uintptr_t pointer;
  DLDataType dtype;
  std::vector<std::int64_t> shape, strides;
  DLDevice device;

  Raw(std::uintptr_t pointer, const std::string& dtype, std::vector<std::int64_t> shape,
      std::vector<std::int64_t> strides, const std::string& device);
};

// One call of an op: the device that all its tensors are on, and what runs it there, CPU threads or a CUDA stream.
class Call {
 public:
  Call(const char* op, int threads, std::uintptr_t stream = 0);

  // Takes the filled parameters to the device's kernel, without the GIL; null where the op has none for that device.
  template <class Params>
  void run(const Params& p, void (*cpu_kernel)(const std::common_type_t<Params>&),
           void (*gpu_kernel)(const std::common_type_t<Params>&, cuda::Stream) = nullptr) const {
    if (on_cpu() ? !cpu_kernel : !gpu_kernel) no_kernel();
    py::gil_scoped_release release;
    if (on_cpu()) return cpu_kernel(p);
    const cuda::CurrentDevice current(device_.device_id);
    gpu_kernel(p, stream_);
    need_launched();
  }

  bool on_cpu() const { return device_.device_type != kDLCUDA; }
  int threads() const { return threads_; }
  std::string join(DLDevice device);  // the device of one more tensor: what is wrong with it, empty where nothing

 private:
  [[noreturn]] void no_kernel() const;
  void need_launched() const;  // raises RuntimeError

  const char* op_;
  int threads_;
  cuda::Stream stream_;
  DLDevice device_{};  // that of the first tensor
};

// A borrowed view of a tensor: no copy, no reference count. It lives as long as the Python object that was passed in.
class Tensor {
 public:
  Tensor(Call& call, py::handle object, const char* name);

  // Each check raises ValueError with the argument's name, what was needed and what was seen.
  const Tensor& ndim(int n) const;
  const Tensor& shape(std::initializer_list<std::int64_t> sizes) const;
  const Tensor& dtype(Dtype wanted) const;
  const Tensor& int32() const;
  const Tensor& int8() const;
  const Tensor& contiguous() const;
  const Tensor& dense_rows() const;  // the values of the last dimension lie side by side
  Dtype dtype() const;               // f32 or bf16, on a GPU also f16

  int ndim() const { return t_.ndim; }
  std::int64_t size(int i) const { return t_.shape[i]; }
  std::int64_t stride(int i) const { return t_.strides[i]; }
  std::int64_t numel() const;
  template <std::size_t N>
  void strides(std::int64_t (&out)[N]) const {
    for (std::size_t i = 0; i < N; ++i) out[i] = t_.strides[i];
  }
  template <std::size_t N>
  void sizes(std::int64_t (&out)[N]) const {
    for (std::size_t i = 0; i < N; ++i) out[i] = t_.shape[i];
  }
  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(t_.data) + t_.byte_offset);
  }
  Values values() const { return {data<const void>(), dtype()}; }
  [[noreturn]] void fail(const std::string& needed, const std::string& seen) const;

 private:
  DLTensor t_;
  const char* name_;
};

// A vector of n values that may be None, of any dtype.
Values optional_vector(Call& call, py::handle object, const char* name, std::int64_t n);

// A table [U, ...] and the row of it that each of B * L tokens takes; index is int32 [L] or [B, L], or None.
TimestepRows timestep_rows(Call& call, const Tensor& table, py::handle index, std::int64_t B, std::int64_t L);

}  // namespace pysora
