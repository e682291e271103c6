#include "tensor.h"

#include <pybind11/gil_safe_call_once.h>

#include <charconv>
#include <stdexcept>

namespace pysora {
namespace {

// torch.Tensor's type and exchange table; null where this torch has none.
struct Exchange {
  py::object type;
  const DLPackExchangeAPI* api = nullptr;
};

const Exchange& exchange() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Exchange> storage;
  return storage
      .call_once_and_store_result([] {
        Exchange found;
        found.type = py::module_::import("torch").attr("Tensor");
        if (!py::hasattr(found.type, "__dlpack_c_exchange_api__")) return found;
        py::object capsule = found.type.attr("__dlpack_c_exchange_api__");
        const void* table = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
        if (!table) throw py::error_already_set();
        const auto* api = static_cast<const DLPackExchangeAPI*>(table);
        if (api->major == 1) found.api = api;
        return found;
      })
      .get_stored();
}

std::string text(const std::int64_t* values, std::size_t n) {
  std::string s = "[";
  for (std::size_t i = 0; i < n; ++i) s += (i ? ", " : "") + std::to_string(values[i]);
  return s + "]";
}

std::string text(DLDataType d) {
  const char* kind = d.code == kDLFloat ? "float" : d.code == kDLBfloat ? "bfloat" : d.code == kDLInt ? "int" : "type ";
  return kind + std::to_string(d.bits);
}

DLDataType parse_dtype(const std::string& name) {
  if (name == "float32") return {kDLFloat, 32, 1};
  if (name == "bfloat16") return {kDLBfloat, 16, 1};
  if (name == "float16") return {kDLFloat, 16, 1};
  if (name == "int32") return {kDLInt, 32, 1};
  if (name == "int8") return {kDLInt, 8, 1};
  throw py::value_error("dtype: need float32, bfloat16, float16, int32 or int8, got " + name);
}

DLDevice parse_device(const std::string& name) {
  if (name == "cpu") return {kDLCPU, 0};
  const std::string cuda = "cuda:";
  const char* number = name.c_str() + cuda.size();
  int id = 0;
  if (name.compare(0, cuda.size(), cuda) == 0 &&
      std::from_chars(number, name.c_str() + name.size(), id).ec == std::errc())
    return {kDLCUDA, id};
  throw py::value_error("device: need cpu or cuda:N, got " + name);
}

std::string text(DLDevice device) {
  if (device.device_type == kDLCPU) return "the CPU";
  return device.device_type == kDLCUDA ? "cuda:" + std::to_string(device.device_id) : "another device";
}

}  // namespace

Raw::Raw(std::uintptr_t pointer_, const std::string& dtype_, std::vector<std::int64_t> shape_,
         std::vector<std::int64_t> strides_, const std::string& device_)
    : pointer(pointer_),
      dtype(parse_dtype(dtype_)),
      shape(std::move(shape_)),
      strides(std::move(strides_)),
      device(parse_device(device_)) {
  if (shape.size() != strides.size()) throw py::value_error("strides: need one per dimension of shape");
}

Call::Call(const char* op, int threads, std::uintptr_t stream)
    : op_(op), threads_(threads), stream_(reinterpret_cast<cuda::Stream>(stream)) {
  if (threads < 1) throw py::value_error("threads: need at least 1, got " + std::to_string(threads));
}

std::string Call::join(DLDevice device) {
  if (device.device_type != kDLCPU && device.device_type != kDLCUDA) return "a tensor on the CPU or a CUDA device";
  if (!device_.device_type) device_ = device;
  const bool same = device.device_type == device_.device_type && device.device_id == device_.device_id;
  return same ? "" : "a tensor on " + text(device_) + " as the others";
}

void Call::no_kernel() const {
  throw py::value_error(std::string(op_) + ": this extension has no kernel for " + text(device_));
}

void Call::need_launched() const {
  const std::string error = cuda::take_error();
  if (!error.empty()) throw std::runtime_error(std::string(op_) + " on " + text(device_) + ": " + error);
}

Tensor::Tensor(Call& call, py::handle object, const char* name) : t_{}, name_(name) {
  if (py::isinstance<Raw>(object)) {
    Raw& raw = object.cast<Raw&>();
    t_ = {reinterpret_cast<void*>(raw.pointer),
          raw.device,
          static_cast<std::int32_t>(raw.shape.size()),
          raw.dtype,
          raw.shape.data(),
          raw.strides.data(),
          0};
  } else {
    const Exchange& torch = exchange();
    if (!PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(torch.type.ptr())))
      throw py::type_error(std::string(name) + ": need a torch.Tensor, got " +
                           std::string(py::str(py::type::of(object))));
    if (!torch.api) throw py::type_error(std::string(name) + ": this torch has no DLPack exchange table, pass a Raw");
    if (torch.api->dltensor_from_py_object_no_sync(object.ptr(), &t_)) {
      PyErr_Clear();  // torch's own message is a C++ stack trace
      fail("a tensor whose memory torch lends", "one without (on the meta device?)");
    }
  }
  const std::string device = call.join(t_.device);
  if (!device.empty()) fail(device, text(t_.device));
  if (!t_.data && numel()) fail("a tensor with storage", "none (a fake tensor?)");
}

void Tensor::fail(const std::string& needed, const std::string& seen) const {
  throw py::value_error(std::string(name_) + ": need " + needed + ", got " + seen);
}

std::int64_t Tensor::numel() const {
  std::int64_t n = 1;
  for (int i = 0; i < t_.ndim; ++i) n *= t_.shape[i];
  return n;
}

const Tensor& Tensor::ndim(int n) const {
  if (t_.ndim != n) fail(std::to_string(n) + " dimensions", std::to_string(t_.ndim));
  return *this;
}

const Tensor& Tensor::shape(std::initializer_list<std::int64_t> sizes) const {
  ndim(static_cast<int>(sizes.size()));
  if (!std::equal(sizes.begin(), sizes.end(), t_.shape))
    fail(text(sizes.begin(), sizes.size()), text(t_.shape, sizes.size()));
  return *this;
}

Dtype Tensor::dtype() const {
  if (t_.dtype.code == kDLFloat && t_.dtype.bits == 32) return Dtype::f32;
  if (t_.dtype.code == kDLBfloat && t_.dtype.bits == 16) return Dtype::bf16;
  const bool on_cpu = t_.device.device_type == kDLCPU;
  if (!on_cpu && t_.dtype.code == kDLFloat && t_.dtype.bits == 16) return Dtype::f16;
  fail(on_cpu ? "float32 or bfloat16" : "float32, bfloat16 or float16", text(t_.dtype));
}

const Tensor& Tensor::dtype(Dtype wanted) const {
  const char* names[] = {"float32", "bfloat16", "float16"};
  if (dtype() != wanted) fail(names[static_cast<int>(wanted)], text(t_.dtype));
  return *this;
}

const Tensor& Tensor::int32() const {
  if (t_.dtype.code != kDLInt || t_.dtype.bits != 32) fail("int32", text(t_.dtype));
  return *this;
}

const Tensor& Tensor::int8() const {
  if (t_.dtype.code != kDLInt || t_.dtype.bits != 8) fail("int8", text(t_.dtype));
  return *this;
}

const Tensor& Tensor::contiguous() const {
  std::int64_t stride = 1;
  for (int i = t_.ndim - 1; i >= 0; stride *= t_.shape[i--])
    if (t_.shape[i] != 1 && t_.strides[i] != stride && numel())
      fail("a contiguous tensor", "strides " + text(t_.strides, static_cast<std::size_t>(t_.ndim)));
  return *this;
}

const Tensor& Tensor::dense_rows() const {
  const int last = t_.ndim - 1;
  if (t_.shape[last] > 1 && t_.strides[last] != 1)
    fail("the last dimension side by side", "a stride of " + std::to_string(t_.strides[last]));
  return *this;
}

Values optional_vector(Call& call, py::handle object, const char* name, std::int64_t n) {
  if (object.is_none()) return {};
  return Tensor(call, object, name).shape({n}).dense_rows().values();
}

TimestepRows timestep_rows(Call& call, const Tensor& table, py::handle index_, std::int64_t B, std::int64_t L) {
  TimestepRows rows{};
  const std::int64_t U = table.size(0);
  rows.first = table.values(), rows.stride = table.stride(0), rows.U = U, rows.per_sample = U == 1 ? 0 : 1;
  if (index_.is_none()) {
    if (U != 1 && U != B) table.fail("1 or B = " + std::to_string(B) + " rows without an index", std::to_string(U));
    return rows;
  }
  const Tensor index(call, index_, "index");
  if (index.int32().ndim() == 1) {
    rows.index_strides[1] = index.shape({L}).stride(0);
  } else {
    index.shape({B, L}).strides(rows.index_strides);
  }
  rows.index = index.data<const std::int32_t>();
  if (!call.on_cpu()) return rows;  // looking would mean waiting for the GPU
  for (std::int64_t b = 0; b < (index.ndim() == 1 ? 1 : B); ++b)
    for (std::int64_t l = 0; l < L; ++l)
      if (rows.row(b, l) < 0 || rows.row(b, l) >= U)
        index.fail("rows from 0 to " + std::to_string(U - 1), std::to_string(rows.row(b, l)));
  return rows;
}

}  // namespace pysora
