#include "pysora/unpatchify.h"

#include "rows.h"

// A row of the video takes a piece of each token of a row of the grid: these pieces stay in the first-level cache while
// the row is written channel by channel, each time from end to end.
namespace pysora::PYSORA_ISA {
namespace {

template <class T>
void run(const UnpatchifyParams& p) {
  const std::int64_t pt = p.patch[0], ph = p.patch[1], pw = p.patch[2], gh = p.grid[1], gw = p.grid[2];
  const std::int64_t frames = p.grid[0] * pt, height = gh * ph, width = gw * pw;
  for_rows(p.threads, p.B * frames * height, p.C * width, [&](std::int64_t row) {
    const std::int64_t b = row / height / frames, t = row / height % frames, y = row % height;
    const std::int64_t token = (t / pt * gh + y / ph) * gw, first = (t % pt * ph + y % ph) * pw * p.C;
    const T* piece = static_cast<const T*>(p.tokens) + b * p.strides[0] + token * p.strides[1] + first * p.strides[2];
    for (std::int64_t c = 0; c < p.C; ++c) {
      T* line = static_cast<T*>(p.out) + (((b * p.C + c) * frames + t) * height + y) * width;
      for (std::int64_t k = 0; k < pw; ++k) {
        const T* value = piece + (k * p.C + c) * p.strides[2];
        for (std::int64_t w = 0; w < gw; ++w) line[w * pw + k] = value[w * p.strides[1]];
      }
    }
  });
}

}  // namespace

void unpatchify(const UnpatchifyParams& p) {
  if (p.dtype == Dtype::f32) {
    run<float>(p);
  } else {
    run<Bf16>(p);
  }
}

}  // namespace pysora::PYSORA_ISA
