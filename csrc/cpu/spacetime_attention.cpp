#include "pysora/spacetime_attention.h"

#include "attention_weights.h"

// Attention in one pass over the keys (Dao 2023, FlashAttention-2), with the queries in the vectors' lanes: a tile of
// kTile keys meets V vectors of queries, and scores become weights while they are still in registers, without a sum or
// maximum across lanes. The products need one element of a key or value for all lanes, which a load broadcasts.
//
// In int8 a query is rounded by a scale of its own, and so is a key without the mean of its sample's keys: that adds
// the same to all scores of a query and leaves the weights as they are (Zhang et al. 2024, arXiv:2410.02367,
// SageAttention).
//
// With a matrix unit, fp32 values are multiplied in three bf16 parts each (parts.h), six products for one.
namespace pysora::PYSORA_ISA {
namespace {

constexpr double kLn2 = 0.69314718055994531;
constexpr float kNone = -3.0e38f;  // the reference before the first key
constexpr int V = kVectors;

template <class T, class S>
struct Attention {
  using Operand = Operands<T, S>;
  using Unit = typename Operand::Unit;
  using Scratch = typename Weights<T, S>::Scratch;
  using Keys = typename Weights<T, S>::Keys;
  using Job = typename Operand::Job;
  using Pair = typename Operand::Pair;
  using P = SpacetimeAttentionParams;
  static constexpr bool kInt8 = Operand::kInt8, kSplit = Operand::kSplit;
  static constexpr std::int64_t kPieces = Operand::kPieces;
  static constexpr std::int64_t kKeys = Operand::kKeys;
  // So many blocks of queries meet a block of keys before the next. The matrix unit is done with them sooner than they
  // come from beyond the second cache.
  static constexpr std::int64_t kTogether = kMatrixUnit<Unit> ? P::kTogether : 1;

  const P& p;
  const Operand operands{p};
  const Weights<T, S> softmax{operands};
  const std::int64_t key_floats = operands.key_floats;

  Scratch scratch(int worker, std::int64_t q_block = 0) const {
    float* at = p.workspace + worker * P::thread_floats(p.K);
    auto take = [&](std::int64_t n) { return (at += n) - n; };
    float *weights = take(kPieces * kLanes * kBlock), *scores = take(kGroup * kLanes);
    float* room = take(W * Operand::aligned(key_floats));
    float* bias = take(2 * kBlock);
    at += q_block * P::q_block_floats(p.K);
    float *q = take(kLanes * key_floats), *out = take(kLanes * (p.K + 16));
    return {weights, scores, room, bias, q, out, take(kLanes), take(kLanes), take(kLanes), take(kLanes), false};
  }

  Keys keys_of(const Pair& from, std::int64_t first, const float* bias) const {
    return {from.keys + first * key_floats, nullptr, bias, from.scales + first, from.offsets + first};
  }

  // out[d] += weights of a block of keys times their values, for R of the head's dimensions.
  template <int R, int NV>
  void gather(const Scratch& s, std::int64_t d, const float* values, std::int64_t depth_of_keys) const {
    // One block's sum is added as one number: the error of a chain grows with the root of its length.
    Vec sum[R][NV] = {};
    dots<Unit>(sum, values + d, 1, p.K, s.weights, NV * W, depth_of_keys);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) {
        float* place = s.out + ((d + r) * NV + v) * W;
        store(place, s.fresh ? sum[r][v] : load(place) + sum[r][v]);
      }
  }

  template <int NV>
  void block(const Scratch& s, const Keys& keys, const float* values, std::int64_t n) const {
    softmax.template make<NV>(s, keys, n);
    if constexpr (kSplit) {
      const std::int64_t used = units<Unit>(n), all = Operand::values_depth(n);
      for (int part = 0; part < kParts; ++part)
        std::memset(s.weights + (part * kBlock + used) * NV * W, 0,
                    static_cast<std::size_t>((all - used) * NV * W) * sizeof(float));
      // A block's sums are added as one number each: the error of a chain grows with its length.
      for (std::int64_t d = 0; d < p.K; d += kGroup) {
        part_products<Unit, NV, false, Split::both>(values + d * all, all, p.K * all, s.weights, NV * W, kBlock, all,
                                                    kGroup, s.scores);
        for (std::int64_t i = 0; i < kGroup * NV; ++i) {
          float* place = s.out + (d * NV + i) * W;
          store(place, s.fresh ? load(s.scores + i * W) : load(place) + load(s.scores + i * W));
        }
      }
    } else if constexpr (kMatrixUnit<Unit>) {
      const auto multiply = s.fresh ? products<Unit, NV, false> : products<Unit, NV, true>;
      multiply(values, units<Unit>(n), s.weights, NV * W, units<Unit>(n), p.K, s.out);
    } else {
      tiles(p.K, [&](auto R, std::int64_t d) {
        gather<R, NV>(s, d, values, units<Unit>(n));
        return true;
      });
    }
  }

  // Takes up the queries [first, first + n) of a job, n <= NV * W.
  template <int NV>
  void begin(const Job& j, std::int64_t first, std::int64_t n, const Pair& packed, const Scratch& s) const {
    for (std::int64_t i = 0; kInt8 && i < NV * W; ++i) s.scales[i] = 0;
    to_lanes<NV>(n, key_floats, s.room, s.q, [&](std::int64_t i, float* place) {
      operands.pack_query(j, first + i, packed, place, s.scales[i], s.added[i]);
    });
    for (int v = 0; v < NV; ++v) store(s.shift + v * W, splat(-kNone)), store(s.total + v * W, Vec{});
    if (j.k0 == j.k1) std::memset(s.out, 0, static_cast<std::size_t>(p.K * NV * W) * sizeof(float));
  }

  // The queries [first, last) of a job, at most kTogether blocks.
  void rows(const Job& j, std::int64_t first, std::int64_t last, const Pair& packed, int worker) const {
    auto each_block = [&](auto f) __attribute__((always_inline)) {
      for (std::int64_t i = first, block = 0; i < last; i += V * W, ++block) {
        const std::int64_t n = last - i < V * W ? last - i : V * W;
        vectors_for(n, [&](auto NV) { f(NV, i, n, scratch(worker, block)); });
      }
    };
    each_block([&](auto NV, std::int64_t i, std::int64_t n, const Scratch& s) { begin<NV>(j, i, n, packed, s); });
    float* const bias = p.key_bias ? scratch(worker).bias : nullptr;
    for (std::int64_t k = 0; k < j.k1 - j.k0; k += kKeys) {
      const std::int64_t n_keys = j.k1 - j.k0 - k < kKeys ? j.k1 - j.k0 - k : kKeys;
      for (std::int64_t i = 0; bias && i < n_keys; ++i) bias[i] = *operands.bias_of(j, k + i) * kLog2e;
      const float* values = operands.block_values(packed, k);
      each_block([&](auto NV, std::int64_t, std::int64_t, Scratch s) {
        s.fresh = k == 0;
        block<NV>(s, keys_of(packed, k, bias), values, n_keys);
      });
    }
    each_block([&](auto NV, std::int64_t i, std::int64_t n, const Scratch& s) { finish<NV>(j, i, n, s); });
  }

  template <int NV>
  void finish(const Job& j, std::int64_t first, std::int64_t n, const Scratch& s) const {
    for (std::int64_t v = 0; v < NV && v * W < n; ++v) {
      const Vec total = load(s.total + v * W);
      const Vec share = total == 0.0f ? Vec{} : 1.0f / total;
      const std::int64_t lanes = n - v * W < W ? n - v * W : W;
      auto row_of = [&](std::int64_t r) {
        return static_cast<T*>(p.out) + ((j.b * p.Lq + first + v * W + r) * p.N + j.n) * p.K;
      };
      std::int64_t d = 0;
      if constexpr (std::is_same<T, Bf16>::value &&
                    Unit::per == 2)  // two dimensions at a time: half as many vectors change places
        for (; d + 2 * W <= p.K; d += 2 * W) {
          Vec m[W];
          for (int i = 0; i < W; ++i) {
            const float* from = s.out + ((d + 2 * i) * NV + v) * W;
            m[i] = pairs(load(from) * share, load(from + NV * W) * share);
          }
          transpose(m);
          for (std::int64_t r = 0; r < lanes; ++r) std::memcpy(row_of(r) + d, &m[r], sizeof m[r]);
        }
      for (; d < p.K; d += W) {
        Vec m[W];
        for (int i = 0; i < W; ++i) m[i] = d + i < p.K ? load(s.out + ((d + i) * NV + v) * W) * share : Vec{};
        transpose(m);
        for (std::int64_t r = 0; r < lanes; ++r) {
          if (p.K - d >= W) {
            store_flushed(row_of(r) + d, m[r]);
          } else {
            store_flushed(row_of(r) + d, m[r], p.K - d);
          }
        }
      }
      for (std::int64_t r = 0; p.lse && r < lanes; ++r)
        p.lse[(j.b * p.N + j.n) * p.Lq + first + v * W + r] =
            total[r] == 0 ? -__builtin_inff()
                          : static_cast<float>(__builtin_log(static_cast<double>(total[r])) -
                                               static_cast<double>(s.shift[v * W + r]) * kLn2 +
                                               (kInt8 ? static_cast<double>(s.added[v * W + r]) : 0.0));
    }
  }

  void run() const {
    const std::int64_t jobs = p.S * p.N, room = p.workspace_floats - p.threads * P::thread_floats(p.K);
    const std::int64_t pairs = operands.pair_floats ? room / operands.pair_floats : jobs;
    const std::int64_t k_blocks = ceil_div(p.longest_k, kKeys), q_blocks = ceil_div(p.longest_q, V * W);
    for (std::int64_t base = 0; base < jobs; base += pairs) {
      const std::int64_t n = jobs - base < pairs ? jobs - base : pairs;
      if (kInt8)
        parallel_for(p.threads, n, [&](std::int64_t slot, int) {
          operands.average(operands.job(base + slot), operands.pair(slot).mean);
        });
      parallel_for(p.threads, n * k_blocks, [&](std::int64_t task, int worker) {
        const std::int64_t slot = task / k_blocks, first = task % k_blocks * kKeys;
        const Job j = operands.job(base + slot);
        const std::int64_t keys = j.k1 - j.k0, last = keys - first < kKeys ? keys : first + kKeys;
        operands.pack(j, first, last, operands.pair(slot), scratch(worker).room);
      });
      // Several blocks of queries a task, while that leaves a few tasks for each thread.
      const std::int64_t fair = n * q_blocks / (4 * p.threads);
      const std::int64_t together = fair < 1 ? 1 : fair < kTogether ? fair : kTogether;
      const std::int64_t queries = together * V * W, q_tasks = ceil_div(p.longest_q, queries);
      parallel_for(p.threads, n * q_tasks, [&](std::int64_t task, int worker) {
        const std::int64_t slot = task / q_tasks;
        const Job j = operands.job(base + slot);
        const std::int64_t first = j.q0 + task % q_tasks * queries;
        const MatrixUnit held;
        rows(j, first, j.q1 - first < queries ? j.q1 : first + queries, operands.pair(slot), worker);
      });
    }
  }
};

// Whether fp32 values are multiplied in parts: infinity has none, and keys with biases are mostly a text's, too few to
// pay for the splitting of the queries. (Not the number of keys: a text's grows with the others in its batch, and the
// bits of a result must not depend on those.)
bool splits(const SpacetimeAttentionParams& p) {
  if (!kMatrixUnit<typename UnitOf<Part>::Unit> || p.key_bias || !p.K || p.K % (2 * kSquare)) return false;
  int infinite = 0;
  auto look = [&](const void* x, const std::int64_t* strides, std::int64_t b, std::int64_t token) {
    Vec poison{};  // NaN where a value is not finite, or its first part would not be
    for (std::int64_t n = 0; n < p.N; ++n) {
      const float* head = static_cast<const float*>(x) + b * strides[0] + token * strides[1] + n * strides[2];
      const auto values = strided(head, strides[3], p.K);
      sweep(p.K, [&](std::int64_t d, auto lanes) { poison = poison + values(d, lanes) * 1.01f * 0.0f; });
    }
    if (!(sum_lanes(poison) == 0.0f)) __atomic_store_n(&infinite, 1, __ATOMIC_RELAXED);
  };
  const std::int64_t tokens = p.Lq + p.Lk;
  for_rows(p.threads, p.B * tokens, p.N * p.K, [&](std::int64_t i) {
    const std::int64_t b = i / tokens, token = i % tokens;
    if (token < p.Lq) return look(p.q, p.q_strides, b, token);
    look(p.k, p.k_strides, b, token - p.Lq), look(p.v, p.v_strides, b, token - p.Lq);
  });
  return !infinite;
}

}  // namespace

void spacetime_attention(const SpacetimeAttentionParams& p) {
  if (p.dtype == Dtype::bf16 && p.int8) {
    Attention<Bf16, std::int8_t>{p}.run();
  } else if (p.dtype == Dtype::bf16) {
    Attention<Bf16, Bf16>{p}.run();
  } else if (p.int8) {
    Attention<float, std::int8_t>{p}.run();
  } else if (splits(p)) {
    if constexpr (kMatrixUnit<typename UnitOf<Part>::Unit>) Attention<float, Part>{p}.run();
  } else {
    Attention<float, float>{p}.run();
  }
}

}  // namespace pysora::PYSORA_ISA
