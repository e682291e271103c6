#pragma once
#include "attention_operands.h"

// From queries and packed keys to the weights of a softmax, whose sum and whose reference are kept beside them.
//
// The reference that is subtracted from a query's scores need not be their maximum: it is raised only when weights pass
// kMost, which is rare after the first tile. Then the block of keys is done again.
//
// The matrix unit leaves its sums in memory. It takes turns with the vectors, kGroup keys at a time, so that these are
// in the first cache. Working at the same time they gain nothing: it takes one of the two ports where vectors multiply.
namespace {

constexpr float kMost = 65536;  // of a few weights: far from overflow, and bf16 keeps their relative precision
constexpr std::int64_t kGroup = 2 * kSquare;

// bf16 of both in turn.
inline Vec pairs(Vec even, Vec odd) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr std::uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh both = _mm512_cvtne2ps_pbh(odd, even);
  return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(_mm512_load_si512(order), reinterpret_cast<__m512i>(both)));
#else
  (void)odd;
  return even;
#endif
}
// As `pairs`, halves away from 0: Intel's processors take less time for these four than for those two instructions.
inline Vec round_pair(Vec even, Vec odd) {
  const UVec half = UVec{} + 0x8000, low = (reinterpret_cast<UVec>(even) + half) >> 16;
  return reinterpret_cast<Vec>(low | ((reinterpret_cast<UVec>(odd) + half) & 0xFFFF0000));
}

template <class T, class S>
struct Weights {
  using Operand = Operands<T, S>;
  using Unit = typename Operand::Unit;
  using Scores = typename Operand::Scores;
  static constexpr bool kInt8 = Operand::kInt8, kSplit = Operand::kSplit;

  const Operand& operands;
  const pysora::SpacetimeAttentionParams& p = operands.p;
  const std::int64_t depth = operands.depth, key_floats = operands.key_floats;

  // A thread's part of the workspace: weights [parts][units of keys][lanes] with lanes = NV * W, scores of a group of
  // keys, room for W rows of units. Of each block of queries: q [parts][depth][lanes], out [K][lanes], minus the
  // reference and the sum of weights of each lane; in int8 also what a score of 1 stands for, in powers of two, and
  // what the keys' mean adds to a lane's scores.
  struct Scratch {
    float *weights, *scores, *room, *bias, *q, *out, *shift, *total, *scales, *added;
    bool fresh;  // `out` has nothing yet, not even zeros
  };

  // Some packed keys. products: theirs with the queries [keys][lanes], where the matrix unit makes them.
  struct Keys {
    const float *units, *products, *bias, *scales;
    const std::int32_t* offsets;
  };

  template <int NV = 0>
  Keys after(const Keys& keys, std::int64_t i) const {
    return {keys.units + i * key_floats, keys.products + i * NV * W, keys.bias ? keys.bias + i : nullptr,
            keys.scales + i, keys.offsets + i};
  }

  // The products of the queries and R keys; `unit` makes scores in powers of two of them.
  template <int R, int NV>
  inline __attribute__((always_inline)) void score(const Scratch& s, Vec (&x)[R][NV], const Keys& keys) const {
    typename Scores::Sum sums[R][NV] = {};
    if constexpr (kMatrixUnit<Scores>) {
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < NV; ++v)
          sums[r][v] = reinterpret_cast<typename Scores::Sum>(load(keys.products + (r * NV + v) * W));
    } else {
      dots<Scores>(sums, keys.units, depth, 1, s.q, NV * W, depth);
    }
    if constexpr (kInt8 && kOffset)
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < NV; ++v) sums[r][v] = sums[r][v] - keys.offsets[r];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) {
        x[r][v] = __builtin_convertvector(sums[r][v], Vec);
        if (kInt8) x[r][v] = x[r][v] * keys.scales[r];
      }
  }

  // Of each lane: minus the reference, the sum of a block's weights, and what makes scores in powers of two.
  template <int NV>
  struct State {
    Vec shift[NV], total[NV], units[kInt8 ? NV : 1];
    Vec unit(int v) const { return units[kInt8 ? v : 0]; }
  };

  template <int NV>
  State<NV> state_of(const Scratch& s) const {
    State<NV> state;
    for (int v = 0; v < NV; ++v) {
      state.shift[v] = load(s.shift + v * W), state.total[v] = Vec{};
      state.units[kInt8 ? v : 0] = kInt8 ? load(s.scales + v * W) : splat(p.scale * kLog2e);
    }
    return state;
  }

  // What is known of a call before its keys are: whether they have biases, and whether weights are rounded to bf16 and
  // nobody asks for the logarithm of their sum, which owes more digits.
  template <bool biased_, bool rounded_>
  struct Kind {
    static constexpr bool biased = biased_, rounded = rounded_;
  };
  template <class F>
  bool with_kind(bool biased, const F& f) const {
    if constexpr (Unit::per > 1 && !kSplit)
      if (!p.lse) return biased ? f(Kind<true, true>{}) : f(Kind<false, true>{});
    return biased ? f(Kind<true, false>{}) : f(Kind<false, false>{});
  }

  // Weights of R keys, which are added to the state's total; returns the largest sum of R.
  template <class Kind, int R, int NV>
  inline __attribute__((always_inline)) Vec weigh(const Scratch& s, State<NV>& state, const Keys& keys,
                                                  float* weights) const {
    Vec x[R][NV];
    score(s, x, keys);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) {
        x[r][v] = fma(x[r][v], state.unit(v), state.shift[v]);
        if (Kind::biased) x[r][v] = x[r][v] + keys.bias[r];
      }
    Vec most{};
    for (int v = 0; v < NV; ++v) {
      for (int r = 0; r < R; ++r) x[r][v] = Kind::rounded ? exp2_for_bf16(x[r][v]) : exp2(x[r][v]);
      Vec sum = R > 1 ? x[0][v] + x[1 % R][v] : x[0][v];  // two by two first: long sums lose digits
      for (int r = 2; r + 1 < R; r += 2) sum = sum + (x[r][v] + x[r + 1][v]);
      if (R > 1 && R % 2) sum = sum + x[R - 1][v];
      state.total[v] = state.total[v] + sum;
      most = max(sum, most);
      for (int r = 0; r < R; r += Unit::per) {
        Vec next = {};
        if (r + 1 < R) next = x[r + 1][v];
        float* place = weights + (r / Unit::per * NV + v) * W;
        if constexpr (kSplit) {
          for (int part = 0; part < kParts; ++part) store(place + part * kBlock * NV * W, cut_pair(x[r][v], next));
        } else {
          put(place, x[r][v], next);
        }
      }
    }
    return most;
  }

  // Stores the weights of consecutive keys as a unit.
  static void put(float* place, Vec even, Vec odd) {
    if constexpr (Unit::per == 1) {
      (void)odd;
      store(place, even);
    } else {
      store(place, kMatrixUnit<Unit> ? round_pair(even, odd) : pairs(even, odd));
    }
  }

  // Raises the references to the scores of n keys where these are higher, and brings totals and `out` to them.
  template <int NV>
  __attribute__((noinline)) void raise(const Scratch& s, const Keys& keys, std::int64_t n) const {
    const State<NV> state = state_of<NV>(s);
    Vec most[NV], factor[NV];
    for (int v = 0; v < NV; ++v) most[v] = -state.shift[v];
    for (std::int64_t i = 0; i < n; ++i) {
      const Keys key = after<NV>(keys, i);
      Vec x[1][NV];
      score(s, x, key);
      for (int v = 0; v < NV; ++v) most[v] = max(x[0][v] * state.unit(v) + splat(key.bias ? *key.bias : 0.0f), most[v]);
    }
    for (int v = 0; v < NV; ++v) {
      float* total = s.total + v * W;
      factor[v] = exp2(-state.shift[v] - most[v]);
      store(s.shift + v * W, -most[v]), store(total, load(total) * factor[v]);
    }
    for (std::int64_t d = 0; !s.fresh && d < p.K; ++d)
      for (int v = 0; v < NV; ++v) {
        float* place = s.out + (d * NV + v) * W;
        store(place, load(place) * factor[v]);
      }
  }

  // Weights of a block of n keys, with the reference where it has to be.
  template <int NV>
  void make(const Scratch& s, const Keys& keys, std::int64_t n) const {
    auto weigh_all = [&](auto kind) { return weigh_block<decltype(kind), NV>(s, keys, n); };
    while (!with_kind(keys.bias, weigh_all)) {
    }
  }

  // Weights of n keys; false, and the reference raised, where some pass kMost.
  template <class Kind, int NV>
  bool weigh_block(const Scratch& s, const Keys& keys, std::int64_t n) const {
    State<NV> state = state_of<NV>(s);
    if constexpr (kMatrixUnit<Scores>) {
      for (std::int64_t i = 0; i < n; i += kGroup)
        if (!weigh_group<Kind>(s, state, after(keys, i), n - i < kGroup ? n - i : kGroup,
                               s.weights + i / Unit::per * NV * W))
          return false;
    } else {
      const bool done = tiles(n, [&](auto R, std::int64_t i) __attribute__((always_inline)) {
        return weigh_tile<Kind, R>(s, state, after(keys, i), s.weights + i / Unit::per * NV * W);
      });
      if (!done) return false;
    }
    for (int v = 0; v < NV; ++v) store(s.total + v * W, load(s.total + v * W) + state.total[v]);
    return true;
  }

  // Those of a tile of R keys, which need all registers: on its own.
  template <class Kind, int R, int NV>
  __attribute__((noinline)) bool weigh_tile(const Scratch& s, State<NV>& state, const Keys& keys,
                                            float* weights) const {
    if (__builtin_expect(!any_greater(weigh<Kind, R>(s, state, keys, weights), kMost), 1)) return true;
    raise<NV>(s, keys, R);
    return false;
  }

  // Those of one group, multiplied by the matrix unit. Whether some pass kMost is asked of their sum, once.
  template <class Kind, int NV>
  bool weigh_group(const Scratch& s, State<NV>& state, Keys keys, std::int64_t n, float* weights) const {
    keys.products = s.scores;
    if constexpr (kSplit) {
      part_products<Scores, NV, false, Split::both>(keys.units, key_floats, depth, s.q, NV * W, depth, depth,
                                                    Operand::aligned(n), s.scores);
    } else {
      products<Scores, NV, false>(keys.units, depth, s.q, NV * W, depth, n, s.scores);
    }
    State<NV> group = state;  // of its own: the compiler keeps it in registers
    for (int v = 0; v < NV; ++v) group.total[v] = Vec{};
    auto some = [&](auto R, std::int64_t i) __attribute__((always_inline)) {
      weigh<Kind, R>(s, group, after<NV>(keys, i), weights + i / Unit::per * NV * W);
    };
    std::int64_t i = 0;
    for (; i + 2 <= n; i += 2) some(std::integral_constant<int, 2>{}, i);
    if (i < n) some(std::integral_constant<int, 1>{}, i);
    Vec most{};
    for (int v = 0; v < NV; ++v) most = max(group.total[v], most), state.total[v] = state.total[v] + group.total[v];
    if (__builtin_expect(!any_greater(most, kMost), 1)) return true;
    raise<NV>(s, keys, n);
    return false;
  }
};

}  // namespace
