#include <array>

#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_unpatchify(py::module_& m) {
  m.def(
      "unpatchify",
      [](py::handle tokens_, const std::array<std::int64_t, 3>& grid, const std::array<std::int64_t, 3>& patch,
         py::handle out_, int threads, std::uintptr_t stream) {
        Call call("unpatchify", threads, stream);
        const Tensor tokens(call, tokens_, "tokens"), out(call, out_, "out");
        UnpatchifyParams p{};
        p.dtype = tokens.ndim(3).dtype();
        p.B = tokens.size(0), p.C = out.ndim(5).size(1);
        for (int i = 0; i < 3; ++i) {
          if (patch[i] < 1) throw py::value_error("patch: need at least 1, got " + std::to_string(patch[i]));
          p.grid[i] = grid[i], p.patch[i] = patch[i];
        }
        tokens.shape({p.B, grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2] * p.C}).strides(p.strides);
        out.shape({p.B, p.C, grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2]}).dtype(p.dtype).contiguous();
        p.tokens = tokens.data<const void>(), p.out = out.data<void>(), p.threads = call.threads();
        call.run(p, cpu().unpatchify, cuda::kernels().unpatchify);
      },
      py::arg("tokens"), py::arg("grid"), py::arg("patch"), py::arg("out"), py::arg("threads"), py::arg("stream") = 0);
}

}  // namespace pysora
