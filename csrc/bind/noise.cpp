#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_noise(py::module_& m) {
  m.def(
      "noise",
      [](py::handle out_, std::uint32_t seed, std::uint32_t sample, const std::vector<std::uint32_t>& origin,
         int threads, std::uintptr_t stream) {
        Call call("noise", threads, stream);
        const Tensor out(call, out_, "out");
        out.ndim(4).dtype(Dtype::f32).contiguous();
        if (origin.size() != 3) throw py::value_error("origin: need (t, y, x)");
        const NoiseParams p{out.data<float>(), out.size(0), out.size(1), out.size(2),
                            out.size(3),       seed,        sample,      {origin[0], origin[1], origin[2]},
                            call.threads()};
        call.run(p, cpu().noise, cuda::kernels().noise);
      },
      py::arg("out"), py::arg("seed"), py::arg("sample"), py::arg("origin"), py::arg("threads"), py::arg("stream") = 0);
}

}  // namespace pysora
