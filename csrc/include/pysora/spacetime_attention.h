#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/product.h"

namespace pysora {

// out = softmax(scale * q k + key_bias) v, per sample and head. With offsets B is 1 and sample s has the queries
// q_offsets[s] <= i < q_offsets[s + 1] and the keys k_offsets[s] <= j < k_offsets[s + 1].
struct SpacetimeAttentionParams {
  const void *q, *k, *v;                                  // [B, Lq, N, K], [B, Lk, N, K] twice; dtype, any strides
  std::int64_t q_strides[4], k_strides[4], v_strides[4];  // in elements
  const float* key_bias;                                  // [B, Lk], or null
  std::int64_t bias_strides[2];
  const std::int32_t *q_offsets, *k_offsets;  // [S + 1], contiguous, or null
  void* out;                                  // [B, Lq, N, K], dtype, contiguous
  float* lse;                                 // [B, N, Lq], contiguous, or null
  std::int64_t B, S, Lq, Lk, N, K;
  std::int64_t longest_q, longest_k;  // the most queries and keys of one sample
  float scale;
  Dtype dtype;
  float* workspace;
  std::int64_t workspace_floats;
  int threads;
  bool int8;  // on the CPU: queries and keys, without the keys' mean, are rounded to 8 bits

  // Floats of the packed keys and values of one (sample, head) pair, and of one thread, at most.
  static std::int64_t pair_floats(std::int64_t longest_k, std::int64_t K) {
    return kParts * (longest_k + 32) * (K + 16) + 2 * K + 80;
  }
  static std::int64_t thread_floats(std::int64_t K) {
    return kLanes * (kParts * kBlock + 32) + 32 * (K + 32) + 2 * kBlock + kTogether * q_block_floats(K);
  }
  static std::int64_t q_block_floats(std::int64_t K) { return kLanes * (3 * K + 68); }
  static constexpr std::int64_t kTogether = 4;  // blocks of queries that a thread holds, at most
};

}  // namespace pysora
