#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {

void bind_sampler_step(py::module_& m) {
  m.attr("SAMPLER_MAX_OUTS") = SamplerStepParams::max_outs;
  m.attr("SAMPLER_MAX_INPUTS") = SamplerStepParams::max_inputs;
  m.def(
      "sampler_step",
      [](py::handle sample_, py::handle prediction_, py::handle uncond_, const std::vector<py::object>& others,
         const std::vector<std::vector<float>>& coefficients, float guidance, const std::vector<py::object>& outs,
         int threads, std::uintptr_t stream) {
        Call call("sampler_step", threads, stream);
        SamplerStepParams p{};
        const Tensor sample(call, sample_, "sample"), prediction(call, prediction_, "prediction");
        p.n = sample.numel();
        auto f32 = [&](py::handle object, const char* name) {
          const Tensor t(call, object, name);
          if (t.dtype(Dtype::f32).contiguous().numel() != p.n) t.fail("as many elements as sample", "another number");
          return t.data<float>();
        };
        p.R = static_cast<int>(outs.size()), p.J = static_cast<int>(others.size()) + 2;
        if (p.R > p.max_outs || coefficients.size() != outs.size()) throw py::value_error("outs: too many, or not R");
        if (p.J > p.max_inputs) throw py::value_error("others: too many");
        p.sample = f32(sample_, "sample");
        p.dtype = prediction.contiguous().dtype();
        if (prediction.numel() != p.n) prediction.fail("as many elements as sample", "another number");
        p.prediction = prediction.data<const void>();
        if (!uncond_.is_none()) {
          const Tensor uncond(call, uncond_, "prediction_uncond");
          if (uncond.dtype(p.dtype).contiguous().numel() != p.n) uncond.fail("as many elements as sample", "others");
          p.uncond = uncond.data<const void>();
        }
        for (std::size_t j = 0; j < others.size(); ++j) p.others[j] = f32(others[j], "history or noise");
        for (std::size_t r = 0; r < outs.size(); ++r) {
          p.outs[r] = f32(outs[r], "outs");
          if (coefficients[r].size() != others.size() + 2) throw py::value_error("coefficients: need one per input");
          std::copy(coefficients[r].begin(), coefficients[r].end(), p.coefficients[r]);
        }
        p.guidance = guidance;
        p.threads = call.threads();
        call.run(p, cpu().sampler_step, cuda::kernels().sampler_step);
      },
      py::arg("sample"), py::arg("prediction"), py::arg("prediction_uncond"), py::arg("others"),
      py::arg("coefficients"), py::arg("guidance"), py::arg("outs"), py::arg("threads"), py::arg("stream") = 0);
}

}  // namespace pysora
