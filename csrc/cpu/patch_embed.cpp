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
  // More than the caches hold: what comes next reads it from memory anyway.
  const bool streams = p.video_shape[0] * L * D * static_cast<std::int64_t>(sizeof(T)) >= kPastCaches && D % W == 0 &&
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

  Vec bias(std::int64_t d, Whole) const { return bias(d, W); }
  Vec bias(std::int64_t d, std::int64_t lanes) const {
    const T* from = static_cast<const T*>(p.bias) + d * p.bias_stride;
    if (p.bias_stride == 1 && lanes == W) return load(from);
    Vec values = {};
    for (std::int64_t i = 0; i < lanes; ++i) values[i] = to_float(from[i * p.bias_stride]);
    return values;
  }

  void run() const {
    const ProductShape shape = p.product();
    const Product<T, Along::rows> product{shape, p.workspace, nullptr, 0};
    product.run(
        [&](std::int64_t d, float* place) { gather(p.weight, p.weight_strides, d * p.weight_strides[0], place); },
        [&](std::int64_t token, float* place) {
          const std::int64_t l = token % L, x = l % w, y = l / w % h, z = l / w / h, *s = p.video_strides;
          gather(p.video, s, token / L * s[0] + z * pt * s[2] + y * ph * s[3] + x * pw * s[4], place);
        },
        [&](std::int64_t token, std::int64_t d, Vec y, auto lanes) __attribute__((always_inline)) {
          if (p.bias) y = y + bias(d, lanes);
          T* place = static_cast<T*>(p.out) + token * D + d;
          if (streams) return store_streamed(place, y);
          store_flushed(place, y, lanes);
        });
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
