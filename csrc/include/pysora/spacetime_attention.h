#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/gemm_shape.h"

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
  std::int64_t slots;  // how many (sample, head) pairs have room in the workspace
  int threads;

  // Floats of one packed key block, of one slot and of one thread.
  static std::int64_t block_floats(std::int64_t K) { return kPanel * (K + kPanel * ceil_div(K, kPanel)); }
  static std::int64_t slot_floats(std::int64_t longest_k, std::int64_t K) {
    return ceil_div(longest_k, kPanel) * block_floats(K);
  }
  static std::int64_t thread_floats(std::int64_t K) {
    return kRows * (K + 2 * kPanel + kPanel * ceil_div(K, kPanel) + 3) + kPanel;
  }
};

}  // namespace pysora
