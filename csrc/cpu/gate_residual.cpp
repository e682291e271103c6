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

template <class T, class Y>
void run(const GateResidualBackwardParams& p) {
  for_rows_by_worker(p.threads, p.B * p.L, p.D, [&](std::int64_t token, int worker) {
    const std::int64_t b = token / p.L, l = token % p.L, row = p.gate.row(b, l);
    const T* grad = static_cast<const T*>(p.grad) + token * p.D;
    const Y* y = static_cast<const Y*>(p.y.data) + b * p.y_strides[0] + l * p.y_strides[1];
    const Values gate = from(p.gate.first, row * p.gate.stride);
    Y* out = static_cast<Y*>(p.out) + token * p.D;
    float* sums = p.sums + (worker * p.gate.U + row) * p.D;
    sweep(p.D, [&](std::int64_t i, auto lanes) {
      const Vec g = load(grad + i, lanes);
      accumulate(sums, i, g * load(y + i, lanes), lanes);
      store_flushed(out + i, g * load(gate, i, lanes), lanes);
    });
  });
}

template <class T>
void run_for(const GateResidualBackwardParams& p) {
  if (p.y.dtype == Dtype::f32) {
    run<T, float>(p);
  } else {
    run<T, Bf16>(p);
  }
}

}  // namespace

void gate_residual(const GateResidualParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

void gate_residual_backward(const GateResidualBackwardParams& p) {
  if (p.dtype == Dtype::f32) {
    run_for<float>(p);
  } else {
    run_for<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
