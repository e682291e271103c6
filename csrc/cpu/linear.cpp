#include "pysora/linear.h"

#include "epilogue.h"
#include "parts.h"

// A matrix product whose results meet the epilogue before they are rounded. With a matrix unit, fp32 tokens meet
// weights that bf16 holds, as those of most checkpoints are, in three bf16 products: no digit is lost, and they take a
// fraction of the time.
namespace pysora::PYSORA_ISA {
namespace {

// Held: what the operands are multiplied as, T or Part.
template <class T, class Out, class Held = T>
struct Linear {
  using Elem = typename Product<Held>::Elem;
  static constexpr bool kSplit = Product<Held>::kSplit;

  const LinearParams& p;
  int* const lost;  // set where a weight is not what it is multiplied as
  const std::int64_t depth = Product<Held>::depth_of(p.D);
  const T* const weight = static_cast<const T*>(p.weight);

  const T* token(std::int64_t i) const {
    return static_cast<const T*>(p.x) + i / p.L * p.x_strides[0] + i % p.L * p.x_strides[1];
  }
  void copy_token(std::int64_t i, float* place) const {
    if constexpr (kSplit) {
      split_values<false>(token(i), p.x_strides[2], p.D, depth, place);
    } else {
      copy_values<Elem>(token(i), p.x_strides[2], p.D, place);
    }
  }
  void copy_weight(std::int64_t e, float* place) const {
    if constexpr (kSplit) {
      if (!narrow_values(weight + e * p.weight_stride, p.D, depth, place)) __atomic_store_n(lost, 1, __ATOMIC_RELAXED);
    } else {
      copy_values<Elem>(weight + e * p.weight_stride, 1, p.D, place);
    }
  }
  // What a product may read where it lies.
  static const Held* in_place(const T* values) {
    if constexpr (kSplit) return nullptr;
    return reinterpret_cast<const Held*>(values);
  }

  // Results of the matrix unit go through memory: where weights lie in the lanes they need not be transposed there.
  // What has to be packed are then the weights, and else the tokens.
  bool turns() const { return kMatrixUnit<typename Product<Held>::Unit> && p.E * p.D < p.B * p.L * (p.D + 2 * p.E); }

  void run() const {
    auto go_on = [&] { return !kSplit || !__atomic_load_n(lost, __ATOMIC_RELAXED); };
    if (turns()) {
      const bool evenly = p.x_strides[2] == 1 && (p.B == 1 || p.x_strides[0] == p.L * p.x_strides[1]);
      const ProductShape shape = p.turned();
      const Product<Held, Along::rows> product{shape, p.workspace, evenly ? in_place(token(0)) : nullptr,
                                               p.x_strides[1]};
      product.run([&](std::int64_t e, float* place) { copy_weight(e, place); },
                  [&](std::int64_t i, float* place) { copy_token(i, place); },
                  [&](std::int64_t i, std::int64_t e, Vec y, auto lanes) { finish<Out>(p, i, e, y, lanes); }, go_on);
    } else {
      const ProductShape shape = p.product();
      const Product<Held> product{shape, p.workspace, in_place(weight), p.weight_stride};
      product.run([&](std::int64_t i, float* place) { copy_token(i, place); },
                  [&](std::int64_t e, float* place) { copy_weight(e, place); },
                  [&](std::int64_t i, std::int64_t e, Vec y, auto lanes) { finish<Out>(p, i, e, y, lanes); }, go_on);
    }
  }
};

// Returns whether the result is there: it is not where the weights are none that Held holds.
template <class T, class Held = T>
bool run(const LinearParams& p) {
  int lost = 0;
  if (p.out_dtype == Dtype::f32) {
    Linear<T, float, Held>{p, &lost}.run();
  } else {
    Linear<T, Bf16, Held>{p, &lost}.run();
  }
  return !lost;
}

// Whether the first few weights are such as bf16 holds: those of a model in fp32 are told at once.
bool seems_split(const LinearParams& p) {
  std::int32_t lost = 0;
  for (std::int64_t i = 0; i < p.D && i < 16 && p.E > 0; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, static_cast<const float*>(p.weight) + i, 4);
    lost |= bits & 0xFFFF;
  }
  return !lost;
}

}  // namespace

void linear(const LinearParams& p) {
  if (p.dtype == Dtype::bf16) {
    run<Bf16>(p);
  } else if (!p.split) {
    run<float>(p);
  } else {
    *p.split = kMatrixUnit<typename UnitOf<Part>::Unit> && seems_split(p) && run<float, Part>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
