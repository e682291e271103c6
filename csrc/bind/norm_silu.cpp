#include <algorithm>

#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {
namespace {

// Merges the pixel dimensions, the innermost first, into one run while the steps fit in both tensors. Where the
// channels lie side by side a run may have any step, else it has a step of 1.
void merge_pixels(const Tensor& x, const Tensor& out, NormSiluParams& p) {
  p.run = p.x_pixel = p.out_pixel = 1;
  int outer = 4;
  std::fill_n(p.outer, 4, 1);
  for (int i = x.ndim() - 1; i >= 0; --i) {
    const std::int64_t size = x.size(i), from = x.stride(i), to = out.stride(i);
    if (i == 1 || size == 1) continue;
    if (p.run == 1 && p.by_channels) p.x_pixel = from, p.out_pixel = to;
    if (from == p.run * p.x_pixel && to == p.run * p.out_pixel) {
      p.run *= size;
    } else {
      p.outer[--outer] = size, p.x_outer_strides[outer] = from, p.out_outer_strides[outer] = to;
    }
  }
}

}  // namespace

void bind_norm_silu(py::module_& m) {
  m.def(
      "norm_silu",
      [](py::handle x_, py::handle gamma_, bool silu, py::handle out_, int threads, std::uintptr_t stream) {
        Call call("norm_silu", threads, stream);
        const Tensor x(call, x_, "x"), gamma(call, gamma_, "gamma"), out(call, out_, "out");
        NormSiluParams p{};
        p.dtype = x.dtype();
        if (x.ndim() != 4 && x.ndim() != 5) x.fail("4 or 5 dimensions", std::to_string(x.ndim()));
        out.ndim(x.ndim()).dtype(p.dtype);
        for (int i = 0; i < x.ndim(); ++i)
          if (out.size(i) != x.size(i)) out.fail("the shape of x", std::to_string(out.size(i)));
        p.x = x.data<const void>(), p.out = out.data<void>();
        p.C = x.size(1), p.x_channel = x.stride(1), p.out_channel = out.stride(1);
        p.by_channels = p.C > 1 && p.x_channel == 1 && p.out_channel == 1;
        merge_pixels(x, out, p);
        p.gamma = gamma.shape({p.C}).dense_rows().values();
        p.silu = silu, p.threads = call.threads();
        call.run(p, cpu().norm_silu, cuda::kernels().norm_silu);
      },
      py::arg("x"), py::arg("gamma"), py::arg("silu"), py::arg("out"), py::arg("threads"), py::arg("stream") = 0);
}

}  // namespace pysora
