#include "pysora/cuda.h"
#include "tensor.h"

namespace pysora {

void bind_causal_conv3d(py::module_& m) {
  m.def(
      "causal_conv3d",
      [](py::handle x_, py::handle weight_, py::handle bias_, py::handle cache_, py::handle gamma, py::handle residual_,
         bool upsample, py::handle out_, py::handle new_cache_, py::handle scales_, int threads,
         std::uintptr_t stream) {
        Call call("causal_conv3d", threads, stream);
        const Tensor x(call, x_, "x"), weight(call, weight_, "weight"), out(call, out_, "out");
        CausalConv3dParams p{};
        p.dtype = x.ndim(5).dtype();
        x.sizes(p.x_shape), x.strides(p.x_strides);
        weight.ndim(5).dtype(p.dtype).sizes(p.weight_shape), weight.strides(p.weight_strides);
        const std::int64_t B = x.size(0), C = x.size(1), T = x.size(2), H = x.size(3), W = x.size(4);
        const std::int64_t made = weight.size(0), past = weight.size(2) - 1, up = upsample ? 2 : 1;
        weight.shape({made, C, past + 1, weight.size(3), weight.size(4)});
        if (past < 0 || weight.size(3) % 2 == 0 || weight.size(4) % 2 == 0) weight.fail("odd kh and kw", "others");
        p.x = x.data<const void>(), p.weight = weight.data<const void>();
        if (!bias_.is_none()) {
          const Tensor bias(call, bias_, "bias");
          p.bias = bias.shape({made}).dtype(p.dtype).data<const void>(), p.bias_stride = bias.stride(0);
        }
        if (!cache_.is_none()) {
          const Tensor cache(call, cache_, "cache");
          p.cache = cache.shape({B, C, past, H, W}).dtype(p.dtype).data<const void>(), cache.strides(p.cache_strides);
        }
        p.gamma = optional_vector(call, gamma, "norm_gamma", C);
        if (p.gamma.data) {
          const Tensor scales(call, scales_, "scales");
          p.scales = scales.shape({B, past + T, H, W}).dtype(Dtype::f32).contiguous().data<float>();
        }
        if (!residual_.is_none()) {
          const Tensor residual(call, residual_, "residual");
          p.residual = residual.shape({B, made, T, up * H, up * W}).dtype(p.dtype).data<const void>();
          residual.strides(p.residual_strides);
        }
        p.out = out.shape({B, made, T, up * H, up * W}).dtype(p.dtype).data<void>(), out.strides(p.out_strides);
        const Tensor new_cache(call, new_cache_, "new_cache");
        p.new_cache = new_cache.shape({B, C, past, H, W}).dtype(p.dtype).data<void>();
        new_cache.strides(p.new_cache_strides);
        p.upsample = upsample;
        call.run(p, nullptr, cuda::kernels().causal_conv3d);
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("cache"), py::arg("norm_gamma"), py::arg("residual"),
      py::arg("upsample"), py::arg("out"), py::arg("new_cache"), py::arg("scales"), py::arg("threads"),
      py::arg("stream") = 0);
}

}  // namespace pysora
