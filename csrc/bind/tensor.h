#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "pysora/dlpack.h"
#include "pysora/dtype.h"

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

// A borrowed view of a tensor: no copy, no reference count. It lives as long as the Python object that was passed in.
class Tensor {
 public:
  Tensor(py::handle object, const char* name);

  // Each check raises ValueError with the argument's name, what was needed and what was seen.
  const Tensor& ndim(int n) const;
  const Tensor& shape(std::initializer_list<std::int64_t> sizes) const;
  const Tensor& dtype(Dtype wanted) const;
  const Tensor& int32() const;
  const Tensor& contiguous() const;
  Dtype dtype() const;  // f32 or bf16

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
  [[noreturn]] void fail(const std::string& needed, const std::string& seen) const;

 private:
  DLTensor t_;
  const char* name_;
};

// The threads a caller asked for, at least one.
int checked_threads(int threads);

}  // namespace pysora
