#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

namespace {

QkNormRopeParams forward_params(Call& call, py::handle x_, py::handle gain_, py::handle cos_, py::handle sin_,
                                float eps, py::handle out_) {
  const Tensor x(call, x_, "x"), gain(call, gain_, "gain"), out(call, out_, "out");
  QkNormRopeParams p{};
  p.dtype = x.ndim(4).dtype();
  p.B = x.size(0), p.L = x.size(1), p.N = x.size(2), p.K = x.size(3);
  p.x = x.dense_rows().data<const void>();
  for (int i = 0; i < 3; ++i) p.x_strides[i] = x.stride(i);
  p.over_heads = gain.ndim(1).size(0) == p.N * p.K;
  p.gain = gain.shape({p.over_heads ? p.N * p.K : p.K}).dense_rows().values();
  if (cos_.is_none() != sin_.is_none()) throw py::value_error("cos, sin: both or neither");
  if (!cos_.is_none()) {
    const Tensor cos(call, cos_, "cos"), sin(call, sin_, "sin");
    if (p.K % 2) x.fail("an even K with cos and sin", std::to_string(p.K));
    p.cos = cos.shape({p.L, p.K / 2}).dtype(Dtype::f32).dense_rows().data<const float>();
    p.sin = sin.shape({p.L, p.K / 2}).dtype(Dtype::f32).dense_rows().data<const float>();
    p.cos_stride = cos.stride(0), p.sin_stride = sin.stride(0);
  }
  p.out = out.shape({p.B, p.L, p.N, p.K}).dtype(p.dtype).contiguous().data<void>();
  p.eps = eps, p.threads = call.threads();
  return p;
}

}  // namespace

void bind_qk_norm_rope(py::module_& m) {
  m.def(
      "qk_norm_rope",
      [](py::handle x, py::handle gain, py::handle cos, py::handle sin, float eps, py::handle out, int threads,
         std::uintptr_t stream) {
        Call call("qk_norm_rope", threads, stream);
        const QkNormRopeParams p = forward_params(call, x, gain, cos, sin, eps, out);
        call.run(p, cpu().qk_norm_rope, cuda::kernels().qk_norm_rope);
      },
      py::arg("x"), py::arg("gain"), py::arg("cos"), py::arg("sin"), py::arg("eps"), py::arg("out"), py::arg("threads"),
      py::arg("stream") = 0);
}

void bind_qk_norm_rope_backward(py::module_& m) {
  m.def(
      "qk_norm_rope_backward",
      [](py::handle grad_, py::handle x, py::handle gain, py::handle cos, py::handle sin, float eps, py::handle out,
         py::handle sums_, int threads) {
        Call call("qk_norm_rope_backward", threads);
        QkNormRopeBackwardParams p{};
        p.forward = forward_params(call, x, gain, cos, sin, eps, out);
        const QkNormRopeParams& f = p.forward;
        const Tensor grad(call, grad_, "grad"), sums(call, sums_, "sums");
        p.grad = grad.shape({f.B, f.L, f.N, f.K}).dtype(f.dtype).contiguous().data<const void>();
        p.sums = sums.shape({f.threads, 2, f.N * f.K}).dtype(Dtype::f32).contiguous().data<float>();
        call.run(p, cpu().qk_norm_rope_backward);
      },
      py::arg("grad"), py::arg("x"), py::arg("gain"), py::arg("cos"), py::arg("sin"), py::arg("eps"), py::arg("out"),
      py::arg("sums"), py::arg("threads"));
}

}  // namespace pysora
