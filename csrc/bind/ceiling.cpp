#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {
namespace {

double run(const Call& call, CeilingParams& p) {
  double work = 0;
  p.work = &work;
  call.run(p, cpu().ceiling);
  return work;
}

}  // namespace

void bind_ceiling(py::module_& m) {
  m.def(
      "ceiling_flops",
      [](bool bf16, std::int64_t rounds, int threads) {
        Call call("ceiling_flops", threads);
        if (rounds < 1) throw py::value_error("rounds: need at least 1");
        CeilingParams p{};
        p.loop = bf16 ? Loop::bf16 : Loop::fp32;
        p.threads = call.threads();
        // Several for each thread, so that one which is disturbed does not let the others wait.
        p.tasks = 8 * static_cast<std::int64_t>(p.threads);
        p.rounds = rounds;
        return run(call, p);
      },
      py::arg("bf16"), py::arg("rounds"), py::arg("threads"));
  m.def(
      "ceiling_triad",
      [](py::handle a_, py::handle b_, py::handle c_, int threads) {
        Call call("ceiling_triad", threads);
        const Tensor a(call, a_, "a"), b(call, b_, "b"), c(call, c_, "c");
        const std::int64_t n = a.ndim(1).size(0);
        for (const Tensor* t : {&a, &b, &c}) t->ndim(1).shape({n}).dtype(Dtype::f32).contiguous();
        if (n % 16) a.fail("a multiple of 16 values", std::to_string(n));
        if (reinterpret_cast<std::uintptr_t>(a.data<float>()) % 64)
          a.fail("memory aligned to 64 bytes", "other memory");
        CeilingParams p{};
        p.loop = Loop::triad;
        p.a = a.data<float>();
        p.b = b.data<const float>();
        p.c = c.data<const float>();
        p.n = n;
        p.threads = call.threads();
        return run(call, p);
      },
      py::arg("a"), py::arg("b"), py::arg("c"), py::arg("threads"));
}

}  // namespace pysora
