#include "pysora/gate_residual.h"

#include "rows.h"

// This file relies on -ffp-contract=off: its bits are the reference's.
namespace pysora::PYSORA_ISA {
namespace {

template <class T>
void run(const GateResidualParams& p) {
  for_rows(p.threads, p.B * p.L, p.D, [&](std::int64_t token) {
    const std::int64_t b = token / p.L, l = token % p.L;
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    const Values y = from(p.y, b * p.y_strides[0] + l * p.y_strides[1]);
    const Values gate = from(p.gate.first, p.gate.row(b, l) * p.gate.stride);
    T* out = static_cast<T*>(p.out) + token * p.D;
    sweep(p.D, [&](std::int64_t i, auto lanes) {
      store(out + i, load(x + i, lanes) + load(y, i, lanes) * load(gate, i, lanes), lanes);
    });
  });
}

}  // namespace

void gate_residual(const GateResidualParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
