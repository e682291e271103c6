#include <sys/mman.h>
#include <unistd.h>

#include "pysora/cpu.h"
#include "pysora/cuda.h"
#include "pysora/parallel.h"
#include "tensor.h"

namespace pysora {
#define PYSORA_OP(name, Params) void bind_##name(py::module_&);
#define PYSORA_CPU_OP PYSORA_OP
#define PYSORA_GPU_OP PYSORA_OP
#include "pysora/ops.def"
}  // namespace pysora

namespace {

// Asks the system for large pages from here on. Memory that was just mapped is cleared when it is first touched, and
// page by page that takes longer than most kernels. Nothing is lost where it is refused.
void use_large_pages(std::uintptr_t address, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  m.doc() = "Native kernels of pysora. Tensors are borrowed; outputs and workspaces are made by the caller.";
  py::class_<pysora::Raw>(m, "Raw", py::module_local())
      .def(py::init<std::uintptr_t, const std::string&, std::vector<std::int64_t>, std::vector<std::int64_t>,
                    const std::string&>(),
           py::arg("pointer"), py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("device"));
  m.def("cpu_isa", [] { return pysora::cpu().isa; });
  m.def("cpu_isas", &pysora::cpu_isas);
  m.def("use_cpu_isa", &pysora::use_cpu_isa, py::arg("isa"));
  m.def("use_large_pages", &use_large_pages, py::arg("address"), py::arg("bytes"));
  m.def("build_info", [] {
    py::dict info;
    info["version"] = PYSORA_VERSION;
    info["compiler"] = PYSORA_COMPILER;
    info["cuda_compiler"] = PYSORA_CUDA_COMPILER;
    info["cuda_targets"] = pysora::cuda::targets();
    info["threads"] = pysora::thread_runtime();
    return info;
  });
#define PYSORA_OP(name, Params) pysora::bind_##name(m);
#define PYSORA_CPU_OP PYSORA_OP
#define PYSORA_GPU_OP PYSORA_OP
#include "pysora/ops.def"
}
