#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_qk_norm_rope(py::module_& m) {
  m.def(
      "qk_norm_rope",
      [](py::handle x_, py::handle gain_, py::handle cos_, py::handle sin_, float eps, py::handle out_, int threads,
         std::uintptr_t stream) {
        Call call("qk_norm_rope", threads, stream);
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
        call.run(p, cpu().qk_norm_rope, cuda::kernels().qk_norm_rope);
      },
      py::arg("x"), py::arg("gain"), py::arg("cos"), py::arg("sin"), py::arg("eps"), py::arg("out"), py::arg("threads"),
      py::arg("stream") = 0);
}

}  // namespace pysora
