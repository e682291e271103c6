#include "pysora/adaln.h"

#include "rows.h"

// One read from memory: the sweeps for the mean, for the variance (around the mean: no cancellation) and for the result
// find their row in the first-level cache.
namespace pysora::PYSORA_ISA {
namespace {

template <class T>
void normalise(const AdalnParams& p, const T* x, T* out, Values shift, Values scale) {
  const float D = static_cast<float>(p.D);
  float mean = 0;
  if (p.layer) {
    const float first = to_float(x[0]);  // a large mean must not cost the sum its last digits
    Sum sum;
    sum.over(p.D,
             [&](Vec total, std::int64_t i, auto lanes) { return total + only(load(x + i, lanes) - first, lanes); });
    mean = first + sum.total() / D;
  }
  Sum squares;
  squares.over(p.D, [&](Vec total, std::int64_t i, auto lanes) {
    const Vec centred = only(load(x + i, lanes) - mean, lanes);
    return fma(centred, centred, total);
  });
  const float factor = 1.0f / __builtin_sqrtf(squares.total() / D + p.eps);
  sweep(p.D, [&](std::int64_t i, auto lanes) {
    Vec y = (load(x + i, lanes) - mean) * factor;
    if (p.gain.data) y = y * load(p.gain, i, lanes);
    if (p.bias.data) y = y + load(p.bias, i, lanes);
    if (scale.data) y = fma(y, 1.0f + load(scale, i, lanes), load(shift, i, lanes));
    store(out + i, y, lanes);
  });
}

template <class T>
void run(const AdalnParams& p) {
  if (p.D == 0) return;
  for_rows(p.threads, p.B * p.L, p.D, [&](std::int64_t token) {
    const std::int64_t b = token / p.L, l = token % p.L;
    const Values shift = from(p.table.first, p.table.row(b, l) * p.table.stride);
    normalise(p, static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1],
              static_cast<T*>(p.out) + token * p.D, shift, from(shift, p.to_scale));
  });
}

}  // namespace

void adaln(const AdalnParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
