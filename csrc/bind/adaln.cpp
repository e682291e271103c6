#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {
namespace {

AdalnParams forward_params(Call& call, py::handle x_, py::handle table_, py::handle index, py::handle gain,
                           py::handle bias, float eps, bool layer, py::handle out_) {
  const Tensor x(call, x_, "x"), out(call, out_, "out");
  AdalnParams p{};
  p.dtype = x.ndim(3).dtype();
  p.B = x.size(0), p.L = x.size(1), p.D = x.size(2);
  p.x = x.dense_rows().data<const void>(), p.x_strides[0] = x.stride(0), p.x_strides[1] = x.stride(1);
  p.out = out.shape({p.B, p.L, p.D}).dtype(p.dtype).contiguous().data<void>();
  if (!table_.is_none()) {
    const Tensor table(call, table_, "table");
    table.ndim(3).shape({table.size(0), 2, p.D}).dense_rows();
    p.table = timestep_rows(call, table, index, p.B, p.L), p.to_scale = table.stride(1);
  }
  p.gain = optional_vector(call, gain, "gain", p.D), p.bias = optional_vector(call, bias, "bias", p.D);
  p.eps = eps, p.layer = layer, p.threads = call.threads();
  return p;
}

}  // namespace

void bind_adaln(py::module_& m) {
  m.def(
      "adaln",
      [](py::handle x, py::handle table, py::handle index, py::handle gain, py::handle bias, float eps, bool layer,
         py::handle out, int threads, std::uintptr_t stream) {
        Call call("adaln", threads, stream);
        const AdalnParams p = forward_params(call, x, table, index, gain, bias, eps, layer, out);
        call.run(p, cpu().adaln, cuda::kernels().adaln);
      },
      py::arg("x"), py::arg("table"), py::arg("index"), py::arg("gain"), py::arg("bias"), py::arg("eps"),
      py::arg("layer"), py::arg("out"), py::arg("threads"), py::arg("stream") = 0);
}

void bind_adaln_backward(py::module_& m) {
  m.def(
      "adaln_backward",
      [](py::handle grad_, py::handle x, py::handle table, py::handle index, py::handle gain, py::handle bias,
         float eps, bool layer, py::handle out, py::handle sums_, int threads) {
        Call call("adaln_backward", threads);
        AdalnBackwardParams p{};
        p.forward = forward_params(call, x, table, index, gain, bias, eps, layer, out);
        const AdalnParams& f = p.forward;
        const Tensor grad(call, grad_, "grad"), sums(call, sums_, "sums");
        p.grad = grad.shape({f.B, f.L, f.D}).dtype(f.dtype).contiguous().data<const void>();
        const std::int64_t floats = AdalnBackwardParams::floats(f.table.U, f.D);
        p.sums = sums.shape({f.threads, floats}).dtype(Dtype::f32).contiguous().data<float>();
        call.run(p, cpu().adaln_backward);
      },
      py::arg("grad"), py::arg("x"), py::arg("table"), py::arg("index"), py::arg("gain"), py::arg("bias"),
      py::arg("eps"), py::arg("layer"), py::arg("out"), py::arg("sums"), py::arg("threads"));
}

}  // namespace pysora
