#pragma once
#include "parts.h"
#include "pysora/spacetime_attention.h"

// Queries, keys and values as the products of attention take them.
namespace {

constexpr float kLog2e = 1.44269504f;

// T: of q, k, v and out. S: what queries and keys are multiplied as; Part: fp32 in three bf16 parts, as are then the
// weights and values.
template <class T, class S>
struct Operands {
  using Params = pysora::SpacetimeAttentionParams;
  static constexpr bool kInt8 = std::is_same<S, std::int8_t>::value, kSplit = std::is_same<S, Part>::value;
  using Unit = typename UnitOf<typename std::conditional<kSplit, Part, T>::type>::Unit;  // of weights and values
  using Scores = typename UnitOf<S>::Unit;                                               // of queries and keys
  static constexpr std::int64_t kPieces = kSplit ? kParts : 1;
  // Keys of a block, whose weights stand in kBlock units for each lane and part. The matrix unit reads and writes a
  // block's sums in memory: where it does, blocks are larger.
  static constexpr std::int64_t kKeys = kMatrixUnit<Unit> ? Unit::per * kBlock : kBlock;

  const Params& p;
  const std::int64_t depth = units<Scores>(p.K);  // of a part
  const std::int64_t key_floats = kPieces * depth;
  const std::int64_t keys_floats = aligned((kSplit ? aligned(p.longest_k) : p.longest_k) * key_floats);
  const std::int64_t values_floats = aligned(kPieces * values_depth(p.longest_k) * p.K);
  const std::int64_t pair_floats = keys_floats + values_floats + (kInt8 ? aligned(p.K) + 2 * aligned(p.longest_k) : 0);

  // Whole cache lines; kSquare is as many.
  static std::int64_t aligned(std::int64_t floats) { return ceil_div(floats, 16) * 16; }
  // Units of n keys' values, and weights.
  static std::int64_t values_depth(std::int64_t n) { return kSplit ? aligned(units<Unit>(n)) : units<Unit>(n); }

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

  // The packed keys and values of one job. Keys: rows of units along the head dimension, part by part; values: a unit
  // holds those of consecutive keys, and blocks of kKeys keys follow each other, part by part each. In int8 also the
  // keys' mean, what 1 stands for in each key, and what kOffset adds to its scores.
  struct Pair {
    float *keys, *values, *mean, *scales;
    std::int32_t* offsets;
  };

  Pair pair(std::int64_t slot) const {
    float* keys = p.workspace + p.threads * Params::thread_floats(p.K) + slot * pair_floats;
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
    float* place = to.keys + i * key_floats;
    const T* key = row(p.k, p.k_strides, j, j.k0 + i);
    if (depth) place[depth - 1] = 0;  // the last unit may be partly full
    if constexpr (kInt8) {
      const auto values = strided(key, p.k_strides[3], p.K);
      auto moved = [&](std::int64_t d, auto lanes) { return values(d, lanes) - load(to.mean + d, lanes); };
      to.scales[i] = quantize<0>(moved, p.K, place);
      if (kOffset) to.offsets[i] = offset_sum(reinterpret_cast<const std::int8_t*>(place), p.K);
    } else if constexpr (kSplit) {
      split_values<true>(key, p.k_strides[3], p.K, depth, place);
    } else {
      copy_values<typename Scores::Elem>(key, p.k_strides[3], p.K, place);
    }
  }

  // The values of the block that begins with the key `first`.
  float* block_values(const Pair& from, std::int64_t first) const {
    return from.values + kPieces * (first / Unit::per) * p.K;
  }

  // Keys [first, last) of a job, counted from its first, which begins a block; room for two rows.
  void pack(const Job& j, std::int64_t first, std::int64_t last, const Pair& to, float* room) const {
    for (std::int64_t i = first; i < last; ++i) pack_key(j, i, to);
    float* values = block_values(to, first);
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

  // [K][units of keys], for each part: the matrix unit takes rows along what is summed.
  void turn_values(const Job& j, std::int64_t first, std::int64_t last, float* place) const {
    const std::int64_t width = values_depth(last - first);
    for (std::int64_t u = 0; u < width; u += W)
      sweep(p.K, [&](std::int64_t d, auto lanes) {
        Vec m[kPieces][W];
        for (std::int64_t i = first + 2 * u, r = 0; r < W; ++r, i += 2) {
          Vec even = value(j, i, last, d, lanes), odd = value(j, i + 1, last, d, lanes);
          for (int part = 0; part < kPieces; ++part) m[part][r] = cut_pair(even, odd);
        }
        for (int part = 0; part < kPieces; ++part) {
          transpose(m[part]);
          for (std::int64_t r = 0; r < W && d + r < p.K; ++r) {
            float* to = place + (part * p.K + d + r) * width + u;
            if (width - u >= W) {
              store(to, m[part][r]);
            } else {
              store(to, m[part][r], width - u);
            }
          }
        }
      });
  }

  // Of one key, of those before `last`; else 0.
  template <class Lanes>
  Vec value(const Job& j, std::int64_t i, std::int64_t last, std::int64_t d, Lanes lanes) const {
    if (i >= last) return Vec{};
    return strided(row(p.v, p.v_strides, j, j.k0 + i), p.v_strides[3], p.K)(d, lanes);
  }

  // One query of a job. In int8 also what a score of 1 stands for, in powers of two, and what the keys' mean adds to
  // its scores.
  void pack_query(const Job& j, std::int64_t token, const Pair& packed, float* place, float& scale,
                  float& added) const {
    const T* query = row(p.q, p.q_strides, j, token);
    if constexpr (kInt8) {
      const auto values = strided(query, p.q_strides[3], p.K);
      scale = quantize<kOffset>(values, p.K, place) * p.scale * kLog2e;
      Vec sum{};
      sweep(p.K, [&](std::int64_t d, auto lanes) { sum = fma(values(d, lanes), load(packed.mean + d, lanes), sum); });
      added = sum_lanes(sum) * p.scale;
    } else if constexpr (kSplit) {
      (void)packed, (void)scale, (void)added;
      split_values<true>(query, p.q_strides[3], p.K, depth, place);
    } else {
      (void)packed, (void)scale, (void)added;
      copy_values<typename Scores::Elem>(query, p.q_strides[3], p.K, place);
    }
  }
};

}  // namespace
