#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_gate_residual(py::module_& m) {
  m.def(
      "gate_residual",
      [](py::handle x_, py::handle y_, py::handle gate_, py::handle index, py::handle out_, int threads,
         std::uintptr_t stream) {
        Call call("gate_residual", threads, stream);
        const Tensor x(call, x_, "x"), y(call, y_, "y"), gate(call, gate_, "gate"), out(call, out_, "out");
        GateResidualParams p{};
        p.dtype = x.ndim(3).dtype();
        p.B = x.size(0), p.L = x.size(1), p.D = x.size(2);
        p.x = x.dense_rows().data<const void>(), p.x_strides[0] = x.stride(0), p.x_strides[1] = x.stride(1);
        p.y = y.shape({p.B, p.L, p.D}).dense_rows().values();
        p.y_strides[0] = y.stride(0), p.y_strides[1] = y.stride(1);
        p.gate = timestep_rows(call, gate.ndim(2).shape({gate.size(0), p.D}).dense_rows(), index, p.B, p.L);
        p.out = out.shape({p.B, p.L, p.D}).dtype(p.dtype).contiguous().data<void>();
        p.threads = call.threads();
        call.run(p, cpu().gate_residual, cuda::kernels().gate_residual);
      },
      py::arg("x"), py::arg("y"), py::arg("gate"), py::arg("index"), py::arg("out"), py::arg("threads"),
      py::arg("stream") = 0);
}

void bind_gate_residual_backward(py::module_& m) {
  m.def(
      "gate_residual_backward",
      [](py::handle grad_, py::handle y_, py::handle gate_, py::handle index, py::handle out_, py::handle sums_,
         int threads) {
        Call call("gate_residual_backward", threads);
        const Tensor grad(call, grad_, "grad"), y(call, y_, "y"), gate(call, gate_, "gate"), out(call, out_, "out");
        const Tensor sums(call, sums_, "sums");
        GateResidualBackwardParams p{};
        p.dtype = grad.ndim(3).contiguous().dtype(), p.grad = grad.data<const void>();
        p.B = grad.size(0), p.L = grad.size(1), p.D = grad.size(2);
        p.y = y.shape({p.B, p.L, p.D}).dense_rows().values();
        p.y_strides[0] = y.stride(0), p.y_strides[1] = y.stride(1);
        p.gate = timestep_rows(call, gate.ndim(2).shape({gate.size(0), p.D}).dense_rows(), index, p.B, p.L);
        p.out = out.shape({p.B, p.L, p.D}).dtype(p.y.dtype).contiguous().data<void>();
        p.threads = call.threads();
        p.sums = sums.shape({p.threads, p.gate.U, p.D}).dtype(Dtype::f32).contiguous().data<float>();
        call.run(p, cpu().gate_residual_backward);
      },
      py::arg("grad"), py::arg("y"), py::arg("gate"), py::arg("index"), py::arg("out"), py::arg("sums"),
      py::arg("threads"));
}

}  // namespace pysora
