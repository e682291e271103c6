#include "linear.h"

#include "pysora/cpu.h"

namespace pysora {

void fill(LinearParams& p, Call& call, const Tensor& x, const Tensor& weight, py::handle bias,
          const std::string& epilogue, py::handle residual_, py::handle gate_, py::handle index, const Tensor& out) {
  p.dtype = x.ndim(3).dtype();
  p.B = x.size(0), p.L = x.size(1), p.D = x.size(2), p.E = weight.ndim(2).size(0);
  p.x = x.data<const void>(), x.strides(p.x_strides);
  p.weight = weight.shape({p.E, p.D}).dense_rows().data<const void>();
  p.weight_stride = weight.stride(0);
  p.bias = optional_vector(call, bias, "bias", p.E);
  p.out_dtype = out.dtype();
  p.out = out.shape({p.B, p.L, p.E}).contiguous().data<void>();
  if (epilogue == "gelu") {
    p.epilogue = Epilogue::gelu;
  } else if (epilogue == "gate_residual") {
    p.epilogue = Epilogue::gate_residual;
    const Tensor residual(call, residual_, "residual"), gate(call, gate_, "gate");
    p.residual = residual.shape({p.B, p.L, p.E}).dense_rows().values();
    p.residual_strides[0] = residual.stride(0), p.residual_strides[1] = residual.stride(1);
    p.gate = timestep_rows(call, gate.ndim(2).shape({gate.size(0), p.E}).dense_rows(), index, p.B, p.L);
  } else if (epilogue != "none") {
    throw py::value_error("epilogue: need none, gelu or gate_residual, got " + epilogue);
  }
  p.threads = call.threads();
}

void bind_linear(py::module_& m) {
  m.def(
      "linear_workspace",
      [](std::int64_t tokens, std::int64_t E, std::int64_t D, int threads, bool split) {
        LinearParams p{};
        p.B = 1, p.L = tokens, p.E = E, p.D = D, p.threads = threads, p.split = split ? &split : nullptr;
        return p.workspace_floats();
      },
      py::arg("tokens"), py::arg("E"), py::arg("D"), py::arg("threads"), py::arg("split"));
  m.def(
      "linear",
      [](py::handle x_, py::handle weight_, py::handle bias, const std::string& epilogue, py::handle residual,
         py::handle gate, py::handle index, py::handle out_, py::handle workspace_, int threads, bool split,
         std::uintptr_t stream) {
        Call call("linear", threads, stream);
        const Tensor x(call, x_, "x"), weight(call, weight_, "weight"), out(call, out_, "out"),
            workspace(call, workspace_, "workspace");
        LinearParams p{};
        fill(p, call, x, weight, bias, epilogue, residual, gate, index, out);
        weight.dtype(p.dtype);
        if (split) p.split = &split;
        workspace.shape({p.workspace_floats()});
        p.workspace = workspace.dtype(Dtype::f32).contiguous().data<float>();
        call.run(p, cpu().linear);
        return split || !p.split;
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("epilogue"), py::arg("residual"), py::arg("gate"),
      py::arg("index"), py::arg("out"), py::arg("workspace"), py::arg("threads"), py::arg("split"),
      py::arg("stream") = 0);
}

}  // namespace pysora
