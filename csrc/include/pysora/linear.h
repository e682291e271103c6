#pragma once
#include <cstdint>

#include "pysora/dtype.h"
#include "pysora/product.h"
#include "pysora/timestep_rows.h"

namespace pysora {

enum class Epilogue { none, gelu, gate_residual };

// y = x weight^T + bias, summed in fp32, and rounded once after the epilogue: y; gelu(y); or residual + y * gate.
struct LinearParams {
  const void* x;  // [B, L, D], dtype, any strides
  std::int64_t x_strides[3];
  const void* weight;  // [E, D], dtype, D side by side
  std::int64_t weight_stride;
  Values bias;  // [E], or no data
  Epilogue epilogue;
  Values residual;  // [B, L, E], E side by side
  std::int64_t residual_strides[2];
  TimestepRows gate;  // [U, E], E side by side
  void* out;          // [B, L, E], out_dtype, contiguous
  std::int64_t B, L, D, E;
  Dtype dtype, out_dtype;
  float* workspace;  // workspace_floats() of them
  int threads;
  // Where it is not null, fp32 tokens are multiplied as three bf16 parts each, for which there must be a matrix unit;
  // it becomes false, and nothing else is done, where bf16 does not hold the weights.
  bool* split;

  // With the tokens in the vectors' lanes, or with the weights.
  ProductShape product() const { return {B * L, E, D, threads, row_floats()}; }
  ProductShape turned() const { return {E, B * L, D, threads, row_floats()}; }
  std::int64_t row_floats() const { return split ? kParts * 16 * ceil_div(D, 32) : D; }
  std::int64_t workspace_floats() const {
    const std::int64_t tokens = product().workspace_floats(), weights = turned().workspace_floats();
    return tokens > weights ? tokens : weights;
  }
};

}  // namespace pysora
