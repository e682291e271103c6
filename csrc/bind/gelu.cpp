#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_gelu(py::module_& m) {
  m.def(
      "gelu",
      [](py::handle x_, py::handle grad_, py::handle out_, int threads) {
        Call call("gelu", threads);
        const Tensor x(call, x_, "x"), out(call, out_, "out");
        GeluParams p{};
        p.dtype = x.contiguous().dtype(), p.x = x.data<const void>(), p.n = x.numel();
        if (!grad_.is_none()) {
          const Tensor grad(call, grad_, "grad");
          if (grad.contiguous().dtype(p.dtype).numel() != p.n)
            grad.fail(std::to_string(p.n) + " values", std::to_string(grad.numel()));
          p.grad = grad.data<const void>();
        }
        if (out.contiguous().dtype(p.dtype).numel() != p.n)
          out.fail(std::to_string(p.n) + " values", std::to_string(out.numel()));
        p.out = out.data<void>(), p.threads = call.threads();
        call.run(p, cpu().gelu);
      },
      py::arg("x"), py::arg("grad"), py::arg("out"), py::arg("threads"));
}

}  // namespace pysora
