#include "pysora/spacetime_attention.h"

#include "int8.h"

// Attention in one pass over the keys (Dao 2023, FlashAttention-2), with the queries in the vectors' lanes: a tile of
// kTile keys meets V vectors of queries, and scores become weights while they are still in registers, without a sum or
// maximum across lanes. The products need one element of a key or value for all lanes, which a load broadcasts.
//
// The reference that is subtracted from a query's scores need not be their maximum: it is raised only when a score
// passes it by kSlack, which is rare after the first tile. Then the block of keys is done again.
//
// In int8 a query is rounded by a scale of its own, and so is a key without the mean of its sample's keys: that adds
// the same to all scores of a query and leaves the weights as they are (Zhang et al. 2024, arXiv:2410.02367,
// SageAttention).
namespace pysora::PYSORA_ISA {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr double kLn2 = 0.69314718055994531;
constexpr float kSlack = 16;       // weights up to 2^16: far from overflow, and bf16 keeps their relative precision
constexpr float kNone = -3.0e38f;  // the reference before the first key
constexpr int V = kVectors;

// T: of q, k, v and out. S: what queries and keys are multiplied as.
template <class T, class S>
struct Attention {
  using Unit = typename UnitOf<T>::Unit;    // of weights and values
  using Scores = typename UnitOf<S>::Unit;  // of queries and keys
  using P = SpacetimeAttentionParams;
  static constexpr bool kInt8 = std::is_same<S, std::int8_t>::value;

  const P& p;
  const std::int64_t depth = units<Scores>(p.K);
  const std::int64_t keys_floats = aligned(p.longest_k * depth);
  const std::int64_t values_floats = aligned(units<Unit>(p.longest_k) * p.K);
  const std::int64_t pair_floats = keys_floats + values_floats + (kInt8 ? aligned(p.K) + 2 * aligned(p.longest_k) : 0);

  // Whole cache lines.
  static std::int64_t aligned(std::int64_t floats) { return ceil_div(floats, 16) * 16; }

  // The tokens of one sample, and one head.
  struct Job {
    std::int64_t b, n, q0, q1, k0, k1;
  };

  Job job(std::int64_t number) const {
    const std::int64_t s = number / p.N, n = number % p.N;
    if (!p.q_offsets) return {s, n, 0, p.Lq, 0, p.Lk};
    return {0, n, p.q_offsets[s], p.q_offsets[s + 1], p.k_offsets[s], p.k_offsets[s + 1]};
  }

  const T* row(const void* base, const std::int64_t* strides, const Job& j, std::int64_t token) const {
    return static_cast<const T*>(base) + j.b * strides[0] + token * strides[1] + j.n * strides[2];
  }

  // The packed keys and values of one job. Keys: rows of units along the head dimension; values: a unit holds those of
  // consecutive keys, and blocks of kBlock keys follow each other. In int8 also the keys' mean, what 1 stands for in
  // each key, and what kOffset adds to its scores.
  struct Pair {
    float *keys, *values, *mean, *scales;
    std::int32_t* offsets;
  };

  Pair pair(std::int64_t slot) const {
    float* keys = p.workspace + p.threads * P::thread_floats(p.K) + slot * pair_floats;
    float *mean = keys + keys_floats + values_floats, *scales = mean + aligned(p.K);
    return {keys, keys + keys_floats, mean, scales, reinterpret_cast<std::int32_t*>(scales + aligned(p.longest_k))};
  }

  const float* bias_of(const Job& j, std::int64_t key) const {
    return p.key_bias + j.b * p.bias_strides[0] + (j.k0 + key) * p.bias_strides[1];
  }

  // The mean of the keys that are not hidden.
  void average(const Job& j, float* mean) const {
    std::memset(mean, 0, static_cast<std::size_t>(p.K) * sizeof(float));
    float count = 0;
    for (std::int64_t i = 0; i < j.k1 - j.k0; ++i) {
      if (p.key_bias && *bias_of(j, i) == -__builtin_inff()) continue;
      count += 1;
      const auto values = strided(row(p.k, p.k_strides, j, j.k0 + i), p.k_strides[3], p.K);
      sweep(p.K, [&](std::int64_t d, auto lanes) { store(mean + d, load(mean + d, lanes) + values(d, lanes), lanes); });
    }
    for (std::int64_t d = 0; count > 0 && d < p.K; ++d) mean[d] /= count;
  }

  void pack_key(const Job& j, std::int64_t i, const Pair& to) const {
    float* place = to.keys + i * depth;
    const T* key = row(p.k, p.k_strides, j, j.k0 + i);
    if (depth) place[depth - 1] = 0;  // the last unit may be partly full
    if constexpr (kInt8) {
      const auto values = strided(key, p.k_strides[3], p.K);
      auto moved = [&](std::int64_t d, auto lanes) { return values(d, lanes) - load(to.mean + d, lanes); };
      to.scales[i] = quantize<0>(moved, p.K, place);
      if (kOffset) to.offsets[i] = offset_sum(reinterpret_cast<const std::int8_t*>(place), p.K);
    } else {
      copy_values<typename Scores::Elem>(key, p.k_strides[3], p.K, place);
    }
  }

  // Keys [first, last) of a job, counted from its first. `first` is even; room for two rows.
  void pack(const Job& j, std::int64_t first, std::int64_t last, const Pair& to, float* room) const {
    for (std::int64_t i = first; i < last; ++i) pack_key(j, i, to);
    float* values = to.values + first / Unit::per * p.K;
    if constexpr (kMatrixUnit<Unit>) {
      turn_values(j, first, last, values);
    } else {
      pack_values(j, first, last, values, room);
    }
  }

  // [units of keys][K].
  void pack_values(const Job& j, std::int64_t first, std::int64_t last, float* place, float* room) const {
    using Elem = typename Unit::Elem;
    auto copy_value = [&](std::int64_t i, float* to) {
      copy_values<Elem>(row(p.v, p.v_strides, j, j.k0 + i), p.v_strides[3], p.K, to);
    };
    for (std::int64_t i = first; i < last; i += Unit::per, place += p.K) {
      if constexpr (Unit::per == 1) {
        copy_value(i, place);
      } else {
        float* odd = room + units<Unit>(p.K);
        copy_value(i, room);
        if (i + 1 < last) copy_value(i + 1, odd);
        for (std::int64_t d = 0; d < p.K; ++d) {
          std::uint32_t both = reinterpret_cast<const Elem*>(room)[d].bits;
          if (i + 1 < last) both |= static_cast<std::uint32_t>(reinterpret_cast<const Elem*>(odd)[d].bits) << 16;
          std::memcpy(place + d, &both, 4);
        }
      }
    }
  }

  // [K][units of keys]: the matrix unit takes rows along what is summed.
  void turn_values(const Job& j, std::int64_t first, std::int64_t last, float* place) const {
    const std::int64_t width = units<Unit>(last - first);
    auto value = [&](std::int64_t i, std::int64_t d, auto lanes) {
      if (i >= last) return UVec{};
      return reinterpret_cast<UVec>(strided(row(p.v, p.v_strides, j, j.k0 + i), p.v_strides[3], p.K)(d, lanes));
    };
    for (std::int64_t u = 0; u < width; u += W)
      sweep(p.K, [&](std::int64_t d, auto lanes) {
        Vec m[W];
        for (std::int64_t i = first + 2 * u, r = 0; r < W; ++r, i += 2)
          m[r] = reinterpret_cast<Vec>(value(i, d, lanes) >> 16 | value(i + 1, d, lanes));
        transpose(m);
        for (std::int64_t r = 0; r < W && d + r < p.K; ++r) {
          float* to = place + (d + r) * width + u;
          if (width - u >= W) {
            store(to, m[r]);
          } else {
            store(to, m[r], width - u);
          }
        }
      });
  }

  // A thread's part of the workspace: q [depth][lanes], weights [units of keys][lanes], out [K][lanes], with
  // lanes = NV * W; room for W rows of units. Of each lane in int8: what a score of 1 stands for, in powers of two, and
  // what the keys' mean adds to its scores.
  struct Scratch {
    float *q, *weights, *out, *room, *bias, *scales, *added;
  };

  Scratch scratch(int worker) const {
    float* at = p.workspace + worker * P::thread_floats(p.K);
    auto take = [&](std::int64_t n) { return (at += n) - n; };
    return {take(kLanes * p.K), take(kLanes * kBlock), take(kLanes * (p.K + 16)), take(16 * (p.K + 16)), take(kBlock),
            take(kLanes),       take(kLanes)};
  }

  // Some packed keys. products: theirs with the queries [keys][lanes], where the matrix unit makes them.
  struct Keys {
    const float *units, *products, *bias, *scales;
    const std::int32_t* offsets;
  };

  Keys keys_of(const Pair& from, std::int64_t first, const float* bias) const {
    return {from.keys + first * depth, nullptr, bias, from.scales + first, from.offsets + first};
  }
  template <int NV>
  Keys after(const Keys& keys, std::int64_t i) const {
    return {keys.units + i * depth, keys.products + i * NV * W, keys.bias ? keys.bias + i : nullptr, keys.scales + i,
            keys.offsets + i};
  }

  // The products of queries and R keys; `unit` makes scores in powers of two of them.
  template <int R, int NV>
  inline __attribute__((always_inline)) void score(const Scratch& s, Vec (&x)[R][NV], const Keys& keys) const {
    typename Scores::Sum sums[R][NV] = {};
    if constexpr (kInt8 && kOffset)
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < NV; ++v) sums[r][v] = sums[r][v] - keys.offsets[r];
    if constexpr (kMatrixUnit<Scores>) {
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < NV; ++v)
          sums[r][v] = sums[r][v] + reinterpret_cast<typename Scores::Sum>(load(keys.products + (r * NV + v) * W));
    } else {
      dots<Scores>(sums, keys.units, depth, 1, s.q, NV * W, depth);
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) {
        x[r][v] = __builtin_convertvector(sums[r][v], Vec);
        if (kInt8) x[r][v] = x[r][v] * keys.scales[r];
      }
  }
  Vec unit(const Scratch& s, int v) const { return kInt8 ? load(s.scales + v * W) : splat(p.scale * kLog2e); }

  template <int NV>
  struct State {
    Vec reference[NV], total[NV];
  };

  // Weights of R keys; false where a score passes its reference by more than kSlack: then the reference is raised, and
  // the state's total and `out` are brought to it. total: of the block.
  template <int R, int NV>
  bool weigh(const Scratch& s, State<NV>& state, Vec (&total)[NV], const Keys& keys, float* weights) const {
    Vec x[R][NV];
    score(s, x, keys);
    Vec most = splat(kNone);
    for (int r = 0; r < R; ++r) {
      const Vec shift = splat(keys.bias ? keys.bias[r] : 0.0f);
      for (int v = 0; v < NV; ++v) {
        x[r][v] = fma(x[r][v], unit(s, v), shift - state.reference[v]);
        most = max(x[r][v], most);
      }
    }
    if (__builtin_expect(any_greater(most, kSlack), 0)) {
      raise<R, NV>(s, state, keys);
      return false;
    }
    for (int v = 0; v < NV; ++v) {
      for (int r = 0; r < R; ++r) x[r][v] = exp2(x[r][v]);
      Vec pairs = {};  // two by two first: long sums lose digits
      for (int r = 0; r + 1 < R; r += 2) pairs = pairs + (x[r][v] + x[r + 1][v]);
      if (R % 2) pairs = pairs + x[R - 1][v];
      total[v] = total[v] + pairs;
      for (int r = 0; r < R; r += Unit::per) {
        Vec next = {};
        if (r + 1 < R) next = x[r + 1][v];
        put(weights + (r / Unit::per * NV + v) * W, x[r][v], next);
      }
    }
    return true;
  }

  // Stores the weights of consecutive keys as a unit.
  static void put(float* place, Vec even, Vec odd) {
    if constexpr (Unit::per == 1) {
      (void)odd;
      store(place, even);
    } else {
      put_pairs(place, even, odd);
    }
  }
  static void put_pairs(float* place, Vec even, Vec odd) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh both = _mm512_cvtne2ps_pbh(odd, even);
    const __m512i mixed = _mm512_permutexvar_epi16(_mm512_load_si512(order), reinterpret_cast<__m512i>(both));
    std::memcpy(place, &mixed, sizeof mixed);
#else
    (void)place, (void)even, (void)odd;
#endif
  }

  template <int R, int NV>
  __attribute__((noinline)) void raise(const Scratch& s, State<NV>& state, const Keys& keys) const {
    Vec x[R][NV];
    score(s, x, keys);
    Vec factor[NV];
    for (int v = 0; v < NV; ++v) {
      Vec most = state.reference[v];
      for (int r = 0; r < R; ++r) most = max(x[r][v] * unit(s, v) + splat(keys.bias ? keys.bias[r] : 0.0f), most);
      factor[v] = exp2(state.reference[v] - most);
      state.reference[v] = most;
      state.total[v] = state.total[v] * factor[v];
    }
    for (std::int64_t d = 0; d < p.K; ++d)
      for (int v = 0; v < NV; ++v) {
        float* place = s.out + (d * NV + v) * W;
        store(place, load(place) * factor[v]);
      }
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
        store(place, load(place) + sum[r][v]);
      }
  }

  // As `tiles`, two by two: what comes from memory needs no registers for sums, and fewer spill (2 to 6 % of the
  // whole).
  template <class F>
  static bool two_by_two(std::int64_t n, const F& f) {
    std::int64_t i = 0;
    for (; i + 2 <= n; i += 2)
      if (!f(std::integral_constant<int, 2>{}, i)) return false;
    return i == n || f(std::integral_constant<int, 1>{}, i);
  }

  template <int NV>
  void block(const Scratch& s, State<NV>& state, Keys keys, const float* values, std::int64_t n) const {
    Vec total[NV];
    bool done;
    do {
      for (int v = 0; v < NV; ++v) total[v] = Vec{};
      if constexpr (kMatrixUnit<Scores>) {  // weights will take their place
        keys.products = s.weights;
        products<Scores, NV, false>(keys.units, depth, s.q, NV * W, depth, n, s.weights);
      }
      auto weigh_some = [&](auto R, std::int64_t i) __attribute__((always_inline)) {
        return weigh<R, NV>(s, state, total, after<NV>(keys, i), s.weights + i / Unit::per * NV * W);
      };
      done = kMatrixUnit<Scores> ? two_by_two(n, weigh_some) : tiles(n, weigh_some);
    } while (!done);
    for (int v = 0; v < NV; ++v) state.total[v] = state.total[v] + total[v];
    if constexpr (kMatrixUnit<Unit>) {
      products<Unit, NV, true>(values, units<Unit>(n), s.weights, NV * W, units<Unit>(n), p.K, s.out);
    } else {
      tiles(p.K, [&](auto R, std::int64_t d) {
        gather<R, NV>(s, d, values, units<Unit>(n));
        return true;
      });
    }
  }

  void pack_query(const Job& j, std::int64_t token, const Pair& packed, std::int64_t lane, const Scratch& s,
                  float* place) const {
    const T* query = row(p.q, p.q_strides, j, token);
    if constexpr (kInt8) {
      const auto values = strided(query, p.q_strides[3], p.K);
      s.scales[lane] = quantize<kOffset>(values, p.K, place) * p.scale * kLog2e;
      Vec sum{};
      sweep(p.K, [&](std::int64_t d, auto lanes) { sum = fma(values(d, lanes), load(packed.mean + d, lanes), sum); });
      s.added[lane] = sum_lanes(sum) * p.scale;
    } else {
      (void)packed, (void)lane, (void)s;
      copy_values<typename Scores::Elem>(query, p.q_strides[3], p.K, place);
    }
  }

  // The queries [first, first + n) of a job, n <= NV * W.
  template <int NV>
  void rows(const Job& j, std::int64_t first, std::int64_t n, const Pair& packed, const Scratch& s) const {
    for (std::int64_t i = 0; kInt8 && i < NV * W; ++i) s.scales[i] = 0;
    to_lanes<NV>(n, depth, s.room, s.q,
                 [&](std::int64_t i, float* place) { pack_query(j, first + i, packed, i, s, place); });
    State<NV> state;
    for (int v = 0; v < NV; ++v) state.reference[v] = splat(kNone), state.total[v] = Vec{};
    std::memset(s.out, 0, static_cast<std::size_t>(p.K * NV * W) * sizeof(float));
    for (std::int64_t k = 0; k < j.k1 - j.k0; k += kBlock) {
      const std::int64_t n_keys = j.k1 - j.k0 - k < kBlock ? j.k1 - j.k0 - k : kBlock;
      for (std::int64_t i = 0; p.key_bias && i < n_keys; ++i) s.bias[i] = *bias_of(j, k + i) * kLog2e;
      const Keys keys = keys_of(packed, k, p.key_bias ? s.bias : nullptr);
      block<NV>(s, state, keys, packed.values + k / Unit::per * p.K, n_keys);
    }
    finish<NV>(j, first, n, s, state);
  }

  template <int NV>
  void finish(const Job& j, std::int64_t first, std::int64_t n, const Scratch& s, const State<NV>& state) const {
    for (std::int64_t v = 0; v < NV && v * W < n; ++v) {
      const Vec total = state.total[v];
      const Vec share = total == 0.0f ? Vec{} : 1.0f / total;
      const std::int64_t lanes = n - v * W < W ? n - v * W : W;
      for (std::int64_t d = 0; d < p.K; d += W) {
        Vec m[W];
        for (int i = 0; i < W; ++i) m[i] = d + i < p.K ? load(s.out + ((d + i) * NV + v) * W) * share : Vec{};
        transpose(m);
        for (std::int64_t r = 0; r < lanes; ++r) {
          T* out = static_cast<T*>(p.out) + ((j.b * p.Lq + first + v * W + r) * p.N + j.n) * p.K + d;
          if (p.K - d >= W) {
            store_flushed(out, m[r]);
          } else {
            store_flushed(out, m[r], p.K - d);
          }
        }
      }
      for (std::int64_t r = 0; p.lse && r < lanes; ++r)
        p.lse[(j.b * p.N + j.n) * p.Lq + first + v * W + r] =
            total[r] == 0 ? -__builtin_inff()
                          : static_cast<float>(static_cast<double>(state.reference[v][r]) * kLn2 +
                                               __builtin_log(static_cast<double>(total[r])) +
                                               (kInt8 ? static_cast<double>(s.added[v * W + r]) : 0.0));
    }
  }

  void run() const {
    const std::int64_t jobs = p.S * p.N, room = p.workspace_floats - p.threads * P::thread_floats(p.K);
    const std::int64_t pairs = pair_floats ? room / pair_floats : jobs;
    const std::int64_t k_blocks = ceil_div(p.longest_k, kBlock), q_blocks = ceil_div(p.longest_q, V * W);
    for (std::int64_t base = 0; base < jobs; base += pairs) {
      const std::int64_t n = jobs - base < pairs ? jobs - base : pairs;
      if (kInt8)
        parallel_for(p.threads, n, [&](std::int64_t slot, int) { average(job(base + slot), pair(slot).mean); });
      parallel_for(p.threads, n * k_blocks, [&](std::int64_t task, int worker) {
        const std::int64_t slot = task / k_blocks, first = task % k_blocks * kBlock;
        const Job j = job(base + slot);
        const std::int64_t keys = j.k1 - j.k0, last = keys - first < kBlock ? keys : first + kBlock;
        pack(j, first, last, pair(slot), scratch(worker).room);
      });
      parallel_for(p.threads, n * q_blocks, [&](std::int64_t task, int worker) {
        const std::int64_t slot = task / q_blocks;
        const Job j = job(base + slot);
        const std::int64_t first = j.q0 + task % q_blocks * V * W;
        const std::int64_t rest = j.q1 - first, n = rest < V * W ? rest : V * W;
        const MatrixUnit held;
        if (n > 0) vectors_for(n, [&](auto NV) { rows<NV>(j, first, n, pair(slot), scratch(worker)); });
      });
    }
  }
};

template <class T>
void run(const SpacetimeAttentionParams& p) {
  if (p.int8) {
    Attention<T, std::int8_t>{p}.run();
  } else {
    Attention<T, T>{p}.run();
  }
}

}  // namespace

void spacetime_attention(const SpacetimeAttentionParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
