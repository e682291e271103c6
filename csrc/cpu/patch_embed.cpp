#include "pysora/patch_embed.h"

#include "gemm.h"
#include "pysora/parallel.h"

// A matrix product whose left operand is gathered patch by patch: the unfolded video never exists in memory.
namespace pysora::PYSORA_ISA {
namespace {

template <class T>
struct PatchEmbed {
  using Unit = typename UnitOf<T>::Unit;
  using Elem = typename Unit::Elem;

  const PatchEmbedParams& p;
  const std::int64_t D = p.weight_shape[0], C = p.weight_shape[1];
  const std::int64_t pt = p.weight_shape[2], ph = p.weight_shape[3], pw = p.weight_shape[4];
  const std::int64_t t = p.video_shape[2] / pt, h = p.video_shape[3] / ph, w = p.video_shape[4] / pw;
  const std::int64_t L = t * h * w, panels = ceil_div(D, kPanel), depth = units<Unit>(C * pt * ph * pw);

  float* panel(std::int64_t i) const { return p.workspace + i * depth * kPanel; }

  // Copies the C*pt*ph*pw values from `base` on into places that `put` gives for their number.
  template <class Put>
  void gather(const void* base, const std::int64_t* strides, std::int64_t offset, const Put& put) const {
    const T* source = static_cast<const T*>(base) + offset;
    std::int64_t k = 0;
    for (std::int64_t c = 0; c < C; ++c)
      for (std::int64_t i = 0; i < pt; ++i)
        for (std::int64_t j = 0; j < ph; ++j) {
          const T* line = source + c * strides[1] + i * strides[2] + j * strides[3];
          for (std::int64_t m = 0; m < pw; ++m) convert(line[m * strides[4]], put(k++));
        }
  }

  void pack_panel(std::int64_t i) const {
    Elem* packed = reinterpret_cast<Elem*>(panel(i));
    std::memset(static_cast<void*>(packed), 0, static_cast<std::size_t>(depth * kPanel) * sizeof(float));
    for (std::int64_t column = 0; column < kPanel && i * kPanel + column < D; ++column)
      gather(p.weight, p.weight_strides, (i * kPanel + column) * p.weight_strides[0],
             [&](std::int64_t k) -> Elem& { return packed[panel_index<Unit>(k, column)]; });
  }

  void rows(std::int64_t b, std::int64_t first, int worker) const {
    const std::int64_t n = L - first < kRows ? L - first : kRows;
    float* a = panel(panels) + worker * kRows * (depth + kPanel);
    float* c = a + kRows * depth;
    std::memset(a, 0, static_cast<std::size_t>(ceil_div(n, kTile) * kTile * depth) * sizeof(float));
    for (std::int64_t r = 0; r < n; ++r) {
      const std::int64_t l = first + r, x = l % w, y = l / w % h, z = l / w / h;
      Elem* row = reinterpret_cast<Elem*>(a + r * depth);
      const std::int64_t* s = p.video_strides;
      gather(p.video, s, b * s[0] + z * pt * s[2] + y * ph * s[3] + x * pw * s[4],
             [&](std::int64_t k) -> Elem& { return row[k]; });
    }
    for (std::int64_t i = 0; i < panels; ++i) {
      const std::int64_t columns = D - i * kPanel < kPanel ? D - i * kPanel : kPanel;
      multiply<Unit>(a, depth, panel(i), depth, c, kPanel, n, columns);
      for (std::int64_t r = 0; r < n; ++r) finish(b, first + r, i * kPanel, columns, c + r * kPanel);
    }
  }

  void finish(std::int64_t b, std::int64_t l, std::int64_t first, std::int64_t columns, const float* sums) const {
    T* out = static_cast<T*>(p.out) + (b * L + l) * D + first;
    const T* bias = static_cast<const T*>(p.bias) + first * p.bias_stride;
    for (std::int64_t d = 0; d < columns; ++d)
      from_float(p.bias ? sums[d] + to_float(bias[d * p.bias_stride]) : sums[d], out[d]);
  }

  void run() const {
    parallel_for(p.threads, panels, [&](std::int64_t i, int) { pack_panel(i); });
    const std::int64_t blocks = ceil_div(L, kRows);
    parallel_for(p.threads, p.video_shape[0] * blocks,
                 [&](std::int64_t task, int worker) { rows(task / blocks, task % blocks * kRows, worker); });
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
