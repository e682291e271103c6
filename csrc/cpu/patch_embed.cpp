#include "pysora/patch_embed.h"

#include "product.h"

// A matrix product whose operand is gathered patch by patch: the unfolded video never exists in memory. The features
// lie in the lanes, so that a token's are stored as they come.
namespace pysora::PYSORA_ISA {
namespace {

constexpr std::int64_t kPastCaches = 64 << 20;  // bytes

template <class T>
struct PatchEmbed {
  using Elem = typename Product<T>::Elem;

  const PatchEmbedParams& p;
  const std::int64_t D = p.weight_shape[0], C = p.weight_shape[1];
  const std::int64_t pt = p.weight_shape[2], ph = p.weight_shape[3], pw = p.weight_shape[4];
  const std::int64_t t = p.video_shape[2] / pt, h = p.video_shape[3] / ph, w = p.video_shape[4] / pw;
  const std::int64_t L = t * h * w;
  // More than the caches hold: what comes next reads it from memory anyway. Not on processors with a matrix unit, whose
  // caches keep what the system has just cleared: past them each line would go to memory twice.
  const bool streams = !kMatrixUnit<typename Product<Bf16>::Unit> &&
                       p.video_shape[0] * L * D * static_cast<std::int64_t>(sizeof(T)) >= kPastCaches && D % W == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.out) % (W * sizeof(T)) == 0;

  // Copies the C*pt*ph*pw values from `offset` on. Lines of the usual length 2 are known to the compiler.
  void gather(const void* base, const std::int64_t* strides, std::int64_t offset, float* to) const {
    const T* source = static_cast<const T*>(base) + offset;
    if (pw == 2) return gather_lines<2>(source, strides, to);
    gather_lines<0>(source, strides, to);
  }
  template <int known>
  void gather_lines(const T* source, const std::int64_t* strides, float* to) const {
    const std::int64_t length = known ? known : pw;
    Elem* place = reinterpret_cast<Elem*>(to);
    for (std::int64_t c = 0; c < C; ++c)
      for (std::int64_t i = 0; i < pt; ++i)
        for (std::int64_t j = 0; j < ph; ++j) {
          const T* line = source + c * strides[1] + i * strides[2] + j * strides[3];
          for (std::int64_t m = 0; m < length; ++m) convert(line[m * strides[4]], *place++);
        }
  }

  // Where results go. On its own, so that the compiler keeps it in registers.
  struct Results {
    T* out;
    const T* bias;
    std::int64_t D, bias_stride;
    bool streams;

    inline __attribute__((always_inline)) void operator()(std::int64_t token, std::int64_t d, Vec y, Whole) const {
      if (bias) y = y + (bias_stride == 1 ? load(bias + d) : biases(d, W));
      T* place = out + token * D + d;
      if (streams) return store_streamed(place, y);
      store_flushed(place, y);
    }
    void operator()(std::int64_t token, std::int64_t d, Vec y, std::int64_t lanes) const {
      if (bias) y = y + biases(d, lanes);
      store_flushed(out + token * D + d, y, lanes);
    }
    __attribute__((noinline)) Vec biases(std::int64_t d, std::int64_t lanes) const {
      Vec values = {};
      for (std::int64_t i = 0; i < lanes; ++i) values[i] = to_float(bias[(d + i) * bias_stride]);
      return values;
    }
  };

  void run() const {
    const ProductShape shape = p.product();
    const Product<T, Along::rows> product{shape, p.workspace, nullptr, 0};
    product.run(
        [&](std::int64_t d, float* place) { gather(p.weight, p.weight_strides, d * p.weight_strides[0], place); },
        [&](std::int64_t token, float* place) {
          const std::int64_t l = token % L, x = l % w, y = l / w % h, z = l / w / h, *s = p.video_strides;
          gather(p.video, s, token / L * s[0] + z * pt * s[2] + y * ph * s[3] + x * pw * s[4], place);
        },
        Results{static_cast<T*>(p.out), static_cast<const T*>(p.bias), D, p.bias_stride, streams});
  }
};

}  // namespace

void patch_embed(const PatchEmbedParams& p) {
  if (p.dtype == Dtype::f32) {
    PatchEmbed<float>{p}.run();
  } else {
    PatchEmbed<Bf16>{p}.run();
  }
}

}  // namespace pysora::PYSORA_ISA
