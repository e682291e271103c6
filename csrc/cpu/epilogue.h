#pragma once
#include "pysora/linear.h"
#include "rows.h"

// What follows a matrix product before its results are rounded.
namespace {

// y / 2 * (1 + tanh(u)) is y * sigmoid(2u), with u = sqrt(2 / pi) * (y + 0.044715 y^3) (Hendrycks and Gimpel 2016).
inline Vec gelu(Vec y) {
  return y * sigmoid(y * (1.5957691f + 0.071354816f * (y * y)));
}

// The results y of a token, from weight e on.
template <class Out, class Lanes>
void finish(const pysora::LinearParams& p, std::int64_t token, std::int64_t e, Vec y, Lanes lanes) {
  if (p.bias.data) y = y + load(p.bias, e, lanes);
  if (p.epilogue == pysora::Epilogue::gelu) y = gelu(y);
  if (p.epilogue == pysora::Epilogue::gate_residual) {
    const std::int64_t b = token / p.L, l = token % p.L;
    const Values gate = from(p.gate.first, p.gate.row(b, l) * p.gate.stride);
    const Values residual = from(p.residual, b * p.residual_strides[0] + l * p.residual_strides[1]);
    y = load(residual, e, lanes) + y * load(gate, e, lanes);
  }
  store_flushed(static_cast<Out*>(p.out) + token * p.E + e, y, lanes);
}

}  // namespace
