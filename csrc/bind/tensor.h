#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

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
  const Tensor& dense_rows() const;  // the values of the last dimension lie side by side
  Dtype dtype() const;               // f32 or bf16

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

// A vector of n values that may be None, of either dtype.
Values optional_vector(py::handle object, const char* name, std::int64_t n);

// A table [U, ...] and the row of it that each of B * L tokens takes; index is int32 [L] or [B, L], or None.
TimestepRows timestep_rows(const Tensor& table, py::handle index, std::int64_t B, std::int64_t L);

// The threads a caller asked for, at least one.
int checked_threads(int threads);

}  // namespace pysora
