#include "pysora/adaln.h"

#include "rows.h"

// One read from memory: the sweeps for the mean, for the variance (around the mean: no cancellation) and for the result
// find their row in the first-level cache.
namespace pysora::PYSORA_ISA {
namespace {

struct Moments {
  float mean, factor;  // factor: one over the deviation
};

template <class T>
Moments moments(const AdalnParams& p, const T* x) {
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
  return {mean, 1.0f / __builtin_sqrtf(squares.total() / D + p.eps)};
}

template <class T>
void normalise(const AdalnParams& p, const T* x, T* out, Values shift, Values scale) {
  const Moments m = moments(p, x);
  sweep(p.D, [&](std::int64_t i, auto lanes) {
    Vec y = (load(x + i, lanes) - m.mean) * m.factor;
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

// With n the normalised row: d shift = g, d scale = g (n gain + bias), d bias = g (1 + scale), d gain = that times n;
// and with h = g (1 + scale) gain, d x = factor (h - mean(h) - n mean(h n)), without mean(h) for an RMS norm.
template <class T>
void run(const AdalnBackwardParams& back) {
  const AdalnParams& p = back.forward;
  if (p.D == 0) return;
  const std::int64_t floats = AdalnBackwardParams::floats(p.table.U, p.D);
  for_rows_by_worker(p.threads, p.B * p.L, p.D, [&](std::int64_t token, int worker) {
    const std::int64_t b = token / p.L, l = token % p.L, row = p.table.row(b, l);
    const Values scale = from(from(p.table.first, row * p.table.stride), p.to_scale);
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    const T* grad = static_cast<const T*>(back.grad) + token * p.D;
    T* out = static_cast<T*>(p.out) + token * p.D;
    float* const sums = back.sums + worker * floats;
    float *d_shift = sums + 2 * row * p.D, *d_scale = d_shift + p.D;
    float *d_gain = sums + 2 * p.table.U * p.D, *d_bias = d_gain + p.D, *h = d_bias + p.D;
    const Moments m = moments(p, x);
    Vec total{}, along{};
    sweep(p.D, [&](std::int64_t i, auto lanes) {
      const Vec n = only((load(x + i, lanes) - m.mean) * m.factor, lanes);
      Vec g = load(grad + i, lanes);
      if (scale.data) {
        Vec y = n;
        if (p.gain.data) y = y * load(p.gain, i, lanes);
        if (p.bias.data) y = y + load(p.bias, i, lanes);
        accumulate(d_shift, i, g, lanes), accumulate(d_scale, i, g * y, lanes);
        g = g * (1.0f + load(scale, i, lanes));
      }
      if (p.bias.data) accumulate(d_bias, i, g, lanes);
      if (p.gain.data) {
        accumulate(d_gain, i, g * n, lanes);
        g = g * load(p.gain, i, lanes);
      }
      total = total + g, along = fma(g, n, along);
      store(h + i, g, lanes);
    });
    const float D = static_cast<float>(p.D);
    const float mean = p.layer ? sum_lanes(total) / D : 0.0f, slope = sum_lanes(along) / D;
    sweep(p.D, [&](std::int64_t i, auto lanes) {
      const Vec n = (load(x + i, lanes) - m.mean) * m.factor;
      store(out + i, m.factor * (load(h + i, lanes) - mean - n * slope), lanes);
    });
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

void adaln_backward(const AdalnBackwardParams& p) {
  if (p.forward.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
