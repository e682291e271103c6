#include <algorithm>

#include "pysora/cpu.h"
#include "tensor.h"

namespace pysora {
namespace {

// Checks offsets [S + 1] that rise from 0 to L; returns the most tokens of one sample.
std::int64_t longest(const Tensor& offsets, std::int64_t L) {
  const auto* at = offsets.ndim(1).int32().contiguous().data<const std::int32_t>();
  const std::int64_t S = offsets.size(0) - 1;
  if (S < 1) offsets.fail("[S + 1] with S at least 1", std::to_string(S + 1));
  std::int64_t most = 0;
  for (std::int64_t s = 0; s < S; ++s) {
    if (at[s + 1] < at[s]) offsets.fail("offsets that rise", std::to_string(at[s + 1]));
    most = std::max<std::int64_t>(most, at[s + 1] - at[s]);
  }
  if (at[0] != 0 || at[S] != L) offsets.fail("offsets from 0 to " + std::to_string(L), std::to_string(at[S]));
  return most;
}

// Packed keys and values of as many (sample, head) pairs as this holds are in memory at once (at least one pair).
constexpr std::int64_t kWorkspaceFloats = 4 << 20;

}  // namespace

void bind_spacetime_attention(py::module_& m) {
  using Params = SpacetimeAttentionParams;
  m.def(
      "spacetime_attention_workspace",
      [](std::int64_t pairs, std::int64_t longest_k, std::int64_t K, int threads) {
        const std::int64_t pair = Params::pair_floats(longest_k, K);
        return threads * Params::thread_floats(K) + std::max(pair, std::min(pairs * pair, kWorkspaceFloats));
      },
      py::arg("pairs"), py::arg("longest_k"), py::arg("K"), py::arg("threads"));
  m.def(
      "spacetime_attention",
      [](py::handle q_, py::handle k_, py::handle v_, float scale, py::handle key_bias_, py::handle q_offsets_,
         py::handle k_offsets_, bool int8, py::handle out_, py::handle lse_, py::handle workspace_, int threads,
         std::uintptr_t stream) {
        Call call("spacetime_attention", threads, stream);
        const Tensor q(call, q_, "q"), k(call, k_, "k"), v(call, v_, "v"), out(call, out_, "out");
        Params p{};
        p.dtype = q.ndim(4).dtype();
        p.B = p.S = q.size(0), p.Lq = q.size(1), p.N = q.size(2), p.K = q.size(3), p.Lk = k.ndim(4).size(1);
        p.q = q.data<const void>(), q.strides(p.q_strides);
        p.k = k.shape({p.B, p.Lk, p.N, p.K}).dtype(p.dtype).data<const void>(), k.strides(p.k_strides);
        p.v = v.shape({p.B, p.Lk, p.N, p.K}).dtype(p.dtype).data<const void>(), v.strides(p.v_strides);
        p.out = out.shape({p.B, p.Lq, p.N, p.K}).dtype(p.dtype).contiguous().data<void>();
        p.longest_q = p.Lq, p.longest_k = p.Lk;
        if (!key_bias_.is_none()) {
          const Tensor bias(call, key_bias_, "key_bias");
          p.key_bias = bias.shape({p.B, p.Lk}).dtype(Dtype::f32).data<const float>(), bias.strides(p.bias_strides);
        }
        if (q_offsets_.is_none() != k_offsets_.is_none())
          throw py::value_error("q_offsets, k_offsets: both or neither");
        if (!q_offsets_.is_none()) {
          const Tensor q_offsets(call, q_offsets_, "q_offsets"), k_offsets(call, k_offsets_, "k_offsets");
          if (p.B != 1) q.fail("B = 1 where offsets are given", std::to_string(p.B));
          if (call.on_cpu()) p.longest_q = longest(q_offsets, p.Lq), p.longest_k = longest(k_offsets, p.Lk);
          p.S = k_offsets.int32().contiguous().shape({q_offsets.int32().contiguous().ndim(1).size(0)}).size(0) - 1;
          p.q_offsets = q_offsets.data<const std::int32_t>(), p.k_offsets = k_offsets.data<const std::int32_t>();
        }
        if (!lse_.is_none())
          p.lse = Tensor(call, lse_, "lse").shape({p.B, p.N, p.Lq}).dtype(Dtype::f32).contiguous().data<float>();
        p.scale = scale, p.int8 = int8, p.threads = call.threads();
        if (call.on_cpu()) {
          const Tensor workspace(call, workspace_, "workspace");
          p.workspace = workspace.ndim(1).dtype(Dtype::f32).contiguous().data<float>();
          p.workspace_floats = workspace.size(0);
          const std::int64_t least = threads * Params::thread_floats(p.K) + Params::pair_floats(p.longest_k, p.K);
          if (p.workspace_floats < least)
            workspace.fail("at least " + std::to_string(least) + " floats", std::to_string(p.workspace_floats));
        }
        call.run(p, cpu().spacetime_attention, cuda::kernels().spacetime_attention);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("scale"), py::arg("key_bias"), py::arg("q_offsets"),
      py::arg("k_offsets"), py::arg("int8"), py::arg("out"), py::arg("lse"), py::arg("workspace"), py::arg("threads"),
      py::arg("stream") = 0);
}

}  // namespace pysora
