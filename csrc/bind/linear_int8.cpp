#include "linear.h"
#include "pysora/cpu.h"

namespace pysora {

void bind_linear_int8(py::module_& m) {
  m.def(
      "linear_int8_workspace",
      [](std::int64_t tokens, std::int64_t E, std::int64_t D, int threads) {
        LinearInt8Params p{};
        p.B = 1, p.L = tokens, p.E = E, p.D = D, p.threads = threads;
        return p.workspace_floats();
      },
      py::arg("tokens"), py::arg("E"), py::arg("D"), py::arg("threads"));
  m.def(
      "linear_int8",
      [](py::handle x_, py::handle weight_, py::handle scale_, py::handle bias, const std::string& epilogue,
         py::handle residual, py::handle gate, py::handle index, py::handle out_, py::handle workspace_, int threads,
         std::uintptr_t stream) {
        Call call("linear_int8", threads, stream);
        const Tensor x(call, x_, "x"), weight(call, weight_, "weight"), scale(call, scale_, "scale"),
            out(call, out_, "out"), workspace(call, workspace_, "workspace");
        LinearInt8Params p{};
        fill(p, call, x, weight, bias, epilogue, residual, gate, index, out);
        weight.int8();
        p.scale = scale.dtype(Dtype::f32).shape({p.E}).contiguous().data<const float>();
        workspace.shape({p.workspace_floats()});
        p.workspace = workspace.dtype(Dtype::f32).contiguous().data<float>();
        call.run(p, cpu().linear_int8);
      },
      py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"), py::arg("epilogue"), py::arg("residual"),
      py::arg("gate"), py::arg("index"), py::arg("out"), py::arg("workspace"), py::arg("threads"),
      py::arg("stream") = 0);
}

}  // namespace pysora
