#pragma once
#include "pysora/dtype.h"
#include "pysora/parallel.h"
#include "pysora/product.h"
#include "pysora/timestep_rows.h"
#include "simd.h"

// Sweeps over rows that lie side by side, of any length. A body is called with the index of the first element and with
// the lanes that count: `Whole` (all, known to the compiler), or how many at the end of the row.
namespace {

using pysora::ceil_div;
using pysora::Dtype;
using pysora::TimestepRows;
using pysora::Values;

struct Whole {};

template <class T>
Vec load(const T* p, Whole) {
  return load(p);
}
template <class T>
Vec load(const T* p, std::int64_t lanes) {  // the other lanes are 0
  T part[W] = {};
  std::memcpy(part, p, static_cast<std::size_t>(lanes) * sizeof(T));
  return load(part);
}

template <class T>
void store(T* p, Vec v, Whole) {
  store(p, v);
}
template <class T>
void store(T* p, Vec v, std::int64_t lanes) {
  T part[W];
  store(part, v);
  std::memcpy(p, part, static_cast<std::size_t>(lanes) * sizeof(T));
}

// As `store`, for results of `vdpbf16ps`, which takes subnormals for zeros anyway.
inline void store_flushed(float* p, Vec v) {
  store(p, v);
}
inline void store_flushed(Bf16* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(v);
  std::memcpy(p, &half, sizeof half);
#else
  store(p, v);
#endif
}
// As `store_flushed`, to a multiple of the vector's size, past the caches where the instruction set can: a line that is
// written whole need not be read before. Whoever waits for the task sees it (parallel.h).
inline void store_streamed(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}
inline void store_streamed(Bf16* p, Vec v) {
#if defined(__AVX512BF16__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
#else
  store_flushed(p, v);
#endif
}

template <class T>
void store_flushed(T* p, Vec v, Whole) {
  store_flushed(p, v);
}
template <class T>
void store_flushed(T* p, Vec v, std::int64_t lanes) {
  T part[W];
  store_flushed(part, v);
  std::memcpy(p, part, static_cast<std::size_t>(lanes) * sizeof(T));
}

inline Vec only(Vec v, Whole) {
  return v;
}
inline Vec only(Vec v, std::int64_t lanes) {  // the other lanes become 0
  IVec lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(lanes) ? v : Vec{};
}

inline Values from(Values values, std::int64_t offset) {
  if (!values.data) return values;
  const std::int64_t bytes = offset * (values.dtype == Dtype::f32 ? 4 : 2);
  return {static_cast<const char*>(values.data) + bytes, values.dtype};
}

// The branch goes the same way along a whole row.
template <class Lanes>
Vec load(Values values, std::int64_t i, Lanes lanes) {
  if (values.dtype == Dtype::f32) return load(static_cast<const float*>(values.data) + i, lanes);
  return load(static_cast<const Bf16*>(values.data) + i, lanes);
}

inline float element(Values values, std::int64_t i) {
  if (values.dtype == Dtype::f32) return static_cast<const float*>(values.data)[i];
  return to_float(static_cast<const Bf16*>(values.data)[i]);
}

template <class Body>
void sweep(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) body(i, Whole{});
  if (i < n) body(i, n - i);
}

// A sum along one or several rows: body(total, i, lanes) returns the new total. There are several totals, so that an
// addition does not wait for the last one.
struct Sum {
  static constexpr int kTotals = 4;
  Vec totals[kTotals] = {};

  template <class Body>
  void over(std::int64_t n, const Body& body) {
    std::int64_t i = 0;
    for (; i + kTotals * W <= n; i += kTotals * W)
      for (int j = 0; j < kTotals; ++j) totals[j] = body(totals[j], i + j * W, Whole{});
    for (; i + W <= n; i += W) totals[0] = body(totals[0], i, Whole{});
    if (i < n) totals[1] = body(totals[1], i, n - i);
  }
  float total() const { return sum_lanes((totals[0] + totals[1]) + (totals[2] + totals[3])); }
};

// Calls body(i) for every i < rows of `width` values. A task is as many rows as it takes to outweigh the handing out.
constexpr std::int64_t kTaskValues = 1 << 15;

template <class Body>
void for_rows_by_worker(int threads, std::int64_t rows, std::int64_t width, const Body& body) {  // body(i, worker)
  const std::int64_t share = kTaskValues / (width + 1) + 1;
  pysora::parallel_for(threads, ceil_div(rows, share), [&](std::int64_t task, int worker) {
    const std::int64_t first = task * share, last = rows - first < share ? rows : first + share;
    for (std::int64_t i = first; i < last; ++i) body(i, worker);
  });
}
template <class Body>
void for_rows(int threads, std::int64_t rows, std::int64_t width, const Body& body) {
  for_rows_by_worker(threads, rows, width, [&](std::int64_t i, int) { body(i); });
}

// sums[i] += v.
template <class Lanes>
void accumulate(float* sums, std::int64_t i, Vec v, Lanes lanes) {
  store(sums + i, load(sums + i, lanes) + v, lanes);
}

}  // namespace
