#include "pysora/spacetime_attention.h"

#include "gemm.h"
#include "pysora/parallel.h"

// Attention in one pass over the keys (Dao 2023, FlashAttention-2): kRows queries meet kPanel keys at a time, and the
// running maximum and sum of each row rescale what was gathered. Keys and values are packed once per sample and head,
// as many of these pairs at a time as the workspace has slots for.
namespace pysora::PYSORA_ISA {
namespace {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;

template <class T>
struct Attention {
  using Unit = typename UnitOf<T>::Unit;
  using Elem = typename Unit::Elem;

  const SpacetimeAttentionParams& p;
  const std::int64_t depth = units<Unit>(p.K), panels = ceil_div(p.K, kPanel), width = panels * kPanel;
  const std::int64_t block_floats = SpacetimeAttentionParams::block_floats(p.K);
  const std::int64_t slot_floats = SpacetimeAttentionParams::slot_floats(p.longest_k, p.K);

  // The tokens of one sample, and one head.
  struct Job {
    std::int64_t b, n, q0, q1, k0, k1;
  };

  Job job(std::int64_t number) const {
    const std::int64_t s = number / p.N, n = number % p.N;
    if (!p.q_offsets) return {s, n, 0, p.Lq, 0, p.Lk};
    return {0, n, p.q_offsets[s], p.q_offsets[s + 1], p.k_offsets[s], p.k_offsets[s + 1]};
  }

  // Keys [k0 + 64*block, ...) of a job: the keys with the head dimension summed, then the values with the keys summed.
  void pack(const Job& j, std::int64_t block, float* packed) const {
    const std::int64_t first = j.k0 + block * kPanel, n = j.k1 - first < kPanel ? j.k1 - first : kPanel;
    std::memset(packed, 0, static_cast<std::size_t>(block_floats) * sizeof(float));
    Elem* keys = reinterpret_cast<Elem*>(packed);
    Elem* values = reinterpret_cast<Elem*>(packed + kPanel * p.K);
    const std::int64_t panel_elems = kPanel * kPanel;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t *ks = p.k_strides, *vs = p.v_strides;
      const T* k = static_cast<const T*>(p.k) + j.b * ks[0] + (first + i) * ks[1] + j.n * ks[2];
      const T* v = static_cast<const T*>(p.v) + j.b * vs[0] + (first + i) * vs[1] + j.n * vs[2];
      for (std::int64_t d = 0; d < p.K; ++d) {
        convert(k[d * ks[3]], keys[panel_index<Unit>(d, i)]);
        convert(v[d * vs[3]], values[d / kPanel * panel_elems + panel_index<Unit>(i, d % kPanel)]);
      }
    }
  }

  // A thread's part of the workspace.
  struct Scratch {
    float *q, *scores, *weights, *out, *best, *sum, *keep, *bias;
  };

  Scratch scratch(int worker) const {
    float* at = p.workspace + p.slots * slot_floats + worker * SpacetimeAttentionParams::thread_floats(p.K);
    auto take = [&](std::int64_t n) { return (at += n) - n; };
    return {take(kRows * p.K), take(kRows * kPanel), take(kRows * kPanel), take(kRows * width),
            take(kRows),       take(kRows),          take(kRows),          take(kPanel)};
  }

  void load_queries(const Job& j, std::int64_t first, std::int64_t n, float* q) const {
    std::memset(q, 0, static_cast<std::size_t>(ceil_div(n, kTile) * kTile * depth) * sizeof(float));
    for (std::int64_t r = 0; r < n; ++r) {
      const std::int64_t* s = p.q_strides;
      const T* source = static_cast<const T*>(p.q) + j.b * s[0] + (first + r) * s[1] + j.n * s[2];
      Elem* row = reinterpret_cast<Elem*>(q + r * depth);
      for (std::int64_t d = 0; d < p.K; ++d) convert(source[d * s[3]], row[d]);
    }
  }

  // The bias of a block's keys in base 2, with -inf where there is no key. Returns whether there is anything to add.
  bool load_bias(const Job& j, std::int64_t first, std::int64_t n, float* bias) const {
    for (std::int64_t i = 0; i < kPanel; ++i) {
      bias[i] = i < n ? 0.0f : -__builtin_inff();
      if (i < n && p.key_bias) bias[i] = p.key_bias[j.b * p.bias_strides[0] + (first + i) * p.bias_strides[1]] * kLog2e;
    }
    return p.key_bias || n % W != 0;
  }

  static void put(float* weights, std::int64_t i, Vec x) {
    if constexpr (Unit::per == 1) {
      store(weights + i, x);
    } else {
      put_pairs(reinterpret_cast<Elem*>(weights) + i, x);
    }
  }
  static void put_pairs(void* place, Vec x) {
#if defined(__AVX512BF16__)
    const __m256bh y = _mm512_cvtneps_pbh(x);
    std::memcpy(place, &y, sizeof y);
#else
    (void)place, (void)x;
#endif
  }

  // Scores of one row to weights: scores are in base 2 from here on. Updates the row's running maximum and sum.
  void soften(const Scratch& s, std::int64_t r, std::int64_t n, bool biased) const {
    float* scores = s.scores + r * kPanel;
    const Vec scale = splat(p.scale * kLog2e);
    Vec most = splat(s.best[r]);
    for (std::int64_t i = 0; i < n; i += W) {
      Vec x = load(scores + i) * scale;
      if (biased) x = x + load(s.bias + i);
      store(scores + i, x);
      most = max(x, most);
    }
    const float best = max_lane(most);
    const float base = best == -__builtin_inff() ? 0.0f : best;  // no key yet: all weights are 0
    Vec total = {};
    float* weights = s.weights + r * kPanel / Unit::per;
    for (std::int64_t i = 0; i < n; i += W) {
      const Vec x = exp2_of_nonpositive(load(scores + i) - base);
      put(weights, i, x);
      total = total + x;
    }
    s.keep[r] = best == s.best[r] ? 1.0f : exp2_of_nonpositive(splat(s.best[r] - base))[0];
    s.sum[r] = s.sum[r] * s.keep[r] + sum_lanes(total);
    s.best[r] = best;
  }

  void rows(const Job& j, std::int64_t first, const float* packed, int worker) const {
    const std::int64_t n = j.q1 - first < kRows ? j.q1 - first : kRows;
    const Scratch s = scratch(worker);
    load_queries(j, first, n, s.q);
    std::memset(s.out, 0, static_cast<std::size_t>(kRows * width) * sizeof(float));
    std::memset(s.weights, 0, static_cast<std::size_t>(kRows * kPanel) * sizeof(float));
    for (std::int64_t r = 0; r < kRows; ++r) s.best[r] = -__builtin_inff(), s.sum[r] = 0, s.keep[r] = 1;
    for (std::int64_t k = j.k0; k < j.k1; k += kPanel, packed += block_floats) {
      const std::int64_t keys = j.k1 - k < kPanel ? j.k1 - k : kPanel;
      const std::int64_t padded = ceil_div(keys, W) * W;
      multiply<Unit>(s.q, depth, packed, depth, s.scores, kPanel, n, padded);
      const bool biased = load_bias(j, k, keys, s.bias);
      for (std::int64_t r = 0; r < n; ++r) soften(s, r, padded, biased);
      for (std::int64_t i = 0; i < panels; ++i) {
        const std::int64_t columns = p.K - i * kPanel < kPanel ? p.K - i * kPanel : kPanel;
        multiply<Unit>(s.weights, kPanel / Unit::per, packed + kPanel * p.K + i * kPanel * kPanel / Unit::per,
                       units<Unit>(padded), s.out + i * kPanel, width, n, columns, s.keep);
      }
    }
    finish(j, first, n, s);
  }

  void finish(const Job& j, std::int64_t first, std::int64_t n, const Scratch& s) const {
    for (std::int64_t r = 0; r < n; ++r) {
      const std::int64_t row = first + r;
      T* out = static_cast<T*>(p.out) + ((j.b * p.Lq + row) * p.N + j.n) * p.K;
      const float share = s.sum[r] == 0 ? 0.0f : 1.0f / s.sum[r];
      for (std::int64_t d = 0; d < p.K; ++d) from_float(s.out[r * width + d] * share, out[d]);
      if (p.lse) p.lse[(j.b * p.N + j.n) * p.Lq + row] = s.best[r] * kLn2 + __builtin_logf(s.sum[r]);
    }
  }

  void run() const {
    const std::int64_t jobs = p.S * p.N;
    const std::int64_t k_blocks = ceil_div(p.longest_k, kPanel), q_blocks = ceil_div(p.longest_q, kRows);
    for (std::int64_t base = 0; base < jobs; base += p.slots) {
      const std::int64_t n = jobs - base < p.slots ? jobs - base : p.slots;
      parallel_for(p.threads, n * k_blocks, [&](std::int64_t task, int) {
        const std::int64_t slot = task / k_blocks, block = task % k_blocks;
        const Job j = job(base + slot);
        if (j.k0 + block * kPanel < j.k1) pack(j, block, p.workspace + slot * slot_floats + block * block_floats);
      });
      parallel_for(p.threads, n * q_blocks, [&](std::int64_t task, int worker) {
        const std::int64_t slot = task / q_blocks;
        const Job j = job(base + slot);
        const std::int64_t first = j.q0 + task % q_blocks * kRows;
        if (first < j.q1) rows(j, first, p.workspace + slot * slot_floats, worker);
      });
    }
  }
};

}  // namespace

void spacetime_attention(const SpacetimeAttentionParams& p) {
  if (p.dtype == Dtype::f32) {
    Attention<float>{p}.run();
  } else {
    Attention<Bf16>{p}.run();
  }
}

}  // namespace pysora::PYSORA_ISA
