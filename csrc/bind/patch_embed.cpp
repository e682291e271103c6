#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_patch_embed(py::module_& m) {
  m.def(
      "patch_embed_workspace",
      [](std::int64_t tokens, std::int64_t D, std::int64_t depth, int threads) {
        return ProductShape{D, tokens, depth, threads}.workspace_floats();
      },
      py::arg("tokens"), py::arg("D"), py::arg("depth"), py::arg("threads"));
  m.def(
      "patch_embed",
      [](py::handle video_, py::handle weight_, py::handle bias_, py::handle out_, py::handle workspace_, int threads,
         std::uintptr_t stream) {
        Call call("patch_embed", threads, stream);
        const Tensor video(call, video_, "video"), weight(call, weight_, "weight"), out(call, out_, "out");
        PatchEmbedParams p{};
        p.dtype = video.ndim(5).dtype();
        video.sizes(p.video_shape), video.strides(p.video_strides);
        weight.ndim(5).dtype(p.dtype).sizes(p.weight_shape), weight.strides(p.weight_strides);
        std::int64_t L = 1;
        for (int i = 2; i < 5; ++i) {
          if (p.weight_shape[i] < 1 || p.video_shape[i] % p.weight_shape[i]) video.fail("whole patches", "a rest");
          L *= p.video_shape[i] / p.weight_shape[i];
        }
        weight.shape({weight.size(0), video.size(1), weight.size(2), weight.size(3), weight.size(4)});
        out.shape({video.size(0), L, weight.size(0)}).dtype(p.dtype).contiguous();
        if (!bias_.is_none()) {
          const Tensor bias(call, bias_, "bias");
          p.bias = bias.shape({weight.size(0)}).dtype(p.dtype).data<const void>();
          p.bias_stride = bias.stride(0);
        }
        p.threads = call.threads();
        if (call.on_cpu()) {
          const Tensor workspace(call, workspace_, "workspace");
          workspace.shape({p.product().workspace_floats()});
          p.workspace = workspace.dtype(Dtype::f32).contiguous().data<float>();
        }
        p.video = video.data<const void>(), p.weight = weight.data<const void>(), p.out = out.data<void>();
        call.run(p, cpu().patch_embed, cuda::kernels().patch_embed);
      },
      py::arg("video"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("workspace"), py::arg("threads"),
      py::arg("stream") = 0);
}

}  // namespace pysora
