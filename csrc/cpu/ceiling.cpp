#include "pysora/ceiling.h"

#include "matrix_unit.h"
#include "pysora/parallel.h"
#include "rows.h"

// The loops against which every kernel's rate is read.
namespace pysora::PYSORA_ISA {
namespace {

constexpr int kChains = 12;               // hides six cycles of latency at two instructions a cycle, in 16 registers
constexpr std::int64_t kSlice = 1 << 16;  // values of the triad that one task takes

struct Fma {
  static constexpr int flops = 2 * W;
  static Vec apply(Vec sum, Vec x, Vec y) { return fma(sum, x, y); }
};

#if defined(__AVX512BF16__)
struct Dot {
  static constexpr int flops = 4 * W;
  static Vec apply(Vec sum, Vec x, Vec y) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
  }
};
#else
using Dot = Fma;  // what bf16 kernels multiply with where no instruction takes pairs
#endif

// Returns a value that depends on every instruction, so that none can be left out. x and y lie below 1: nothing
// overflows, and nothing becomes subnormal.
template <class Unit>
float repeat(std::int64_t rounds, Vec x, Vec y) {
  Vec sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = splat(static_cast<float>(i));
  for (std::int64_t r = 0; r < rounds; ++r)
    for (int i = 0; i < kChains; ++i) sum[i] = Unit::apply(sum[i], x, y);
  for (int i = 1; i < kChains; ++i) sum[0] = sum[0] + sum[i];
  return sum_lanes(sum[0]);
}

template <class Unit>
double arithmetic(const CeilingParams& p) {
  volatile float half = 0.5f, quarter = 0.25f;  // not known to the compiler
  const Vec x = splat(half), y = splat(quarter);
  parallel_for(p.threads, p.tasks, [&](std::int64_t, int) {
    volatile float kept = repeat<Unit>(p.rounds, x, y);
    (void)kept;
  });
  return static_cast<double>(p.tasks) * static_cast<double>(p.rounds) * kChains * Unit::flops;
}

#if defined(__AMX_BF16__)
// One round is as many products as there are registers beside the operands'.
double matrices(const CeilingParams& p) {
  constexpr int kSums = 6, kFlops = 16 * 16 * 32 * 2;
  parallel_for(p.threads, p.tasks, [&](std::int64_t, int) {
    const MatrixUnit held;  // its registers are zero
    for (std::int64_t r = 0; r < p.rounds; ++r) {
      _tile_dpbf16ps(0, 6, 7);
      _tile_dpbf16ps(1, 6, 7);
      _tile_dpbf16ps(2, 6, 7);
      _tile_dpbf16ps(3, 6, 7);
      _tile_dpbf16ps(4, 6, 7);
      _tile_dpbf16ps(5, 6, 7);
    }
  });
  return static_cast<double>(p.tasks) * static_cast<double>(p.rounds) * kSums * kFlops;
}
#else
double matrices(const CeilingParams& p) {
  return arithmetic<Dot>(p);
}
#endif

double triad(const CeilingParams& p) {
  const Vec factor = splat(3.0f);
  parallel_for(p.threads, (p.n + kSlice - 1) / kSlice, [&](std::int64_t slice, int) {
    const std::int64_t end = (slice + 1) * kSlice < p.n ? (slice + 1) * kSlice : p.n;
    for (std::int64_t i = slice * kSlice; i < end; i += W)
      store_streamed(p.a + i, fma(load(p.c + i), factor, load(p.b + i)));
  });
  return 3.0 * sizeof(float) * static_cast<double>(p.n);
}

}  // namespace

void ceiling(const CeilingParams& p) {
  switch (p.loop) {
    case Loop::fp32:
      *p.work = arithmetic<Fma>(p);
      break;
    case Loop::bf16:
      *p.work = matrices(p);
      break;
    case Loop::triad:
      *p.work = triad(p);
      break;
  }
}

}  // namespace pysora::PYSORA_ISA
