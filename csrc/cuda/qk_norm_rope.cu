#include "pysora/qk_norm_rope.h"

#include "launch.h"
#include "rows.h"

// One pass: a row (a token, or a head where each is normed alone) stays in its threads' registers from the sum of its
// squares to its result. The grid goes through the rows in steps, so that a thread reads its gain once.
namespace pysora::cuda {
namespace {

// The cosines and sines of P values of a head, from `pos`. With two pairs a thread, the first of two neighbours reads
// four cosines and the second four sines, and they swap halves: 128-bit accesses again.
template <int P>
__device__ void load_angles(const float* cos, const float* sin, unsigned pos, bool inside, float (&c)[P / 2],
                            float (&s)[P / 2]) {
  if constexpr (P == 8) {
    if (inside) load(cos + pos / 2, c), load(sin + pos / 2, s);
  } else {
    const bool second = threadIdx.x % 2;
    float own[4] = {};
    if (inside) load((second ? sin : cos) + pos / 8 * 4, own);
    const float first = __shfl_xor_sync(0xFFFFFFFF, second ? own[0] : own[2], 1);
    const float last = __shfl_xor_sync(0xFFFFFFFF, second ? own[1] : own[3], 1);
    c[0] = second ? first : own[0], c[1] = second ? last : own[1];
    s[0] = second ? own[2] : first, s[1] = second ? own[3] : last;
  }
}

// blockDim is (threads of a row, rows of a block); inverse is 1 / (values of a row).
template <class T, int P>
__global__ void __launch_bounds__(kMostLanes)
    qk_norm_rope_kernel(const __grid_constant__ QkNormRopeParams p, float inverse) {
  constexpr int kSteps = kHeld / P;
  const unsigned K = static_cast<unsigned>(p.K), L = static_cast<unsigned>(p.L);
  const unsigned heads = p.over_heads ? 1 : static_cast<unsigned>(p.N);  // rows of a token
  const unsigned D = p.over_heads ? static_cast<unsigned>(p.N) * K : K, rows = static_cast<unsigned>(p.B) * L * heads;
  const unsigned first = threadIdx.x * P, step = blockDim.x * P;
  const bool same_angles = step % K == 0;  // at every step of a thread
  RowSum sum(blockDim.x);

  float gain[kSteps][P] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) load_in_pairs(p.gain, first + i * step, first + i * step < D, gain[i]);

  for (unsigned start = blockIdx.x * blockDim.y; start < rows; start += gridDim.x * blockDim.y) {
    const unsigned row = start + threadIdx.y, token = row / heads, b = token / L, l = token % L;
    const unsigned width = row < rows ? D : 0;  // threads without a row hold nothing of it
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1] + row % heads * p.x_strides[2];
    float y[kSteps][P] = {}, squares = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned at = first + i * step;
      if (at < width) load(x + at / K * p.x_strides[2] + at % K, y[i]);
#pragma unroll
      for (int j = 0; j < P; ++j) squares = fmaf(y[i][j], y[i][j], squares);
    }
    const float factor = rsqrtf(fmaf(sum(squares), inverse, p.eps));
    T* out = static_cast<T*>(p.out) + static_cast<std::int64_t>(row) * D;
    const float *cos = p.cos + l * p.cos_stride, *sin = p.sin + l * p.sin_stride;
    float c[P / 2 + P % 2] = {}, s[P / 2 + P % 2] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned at = first + i * step;
      const bool inside = at < width;
#pragma unroll
      for (int j = 0; j < P; ++j) y[i][j] *= factor * gain[i][j];
      if (p.cos) {
        if constexpr (P == 1) {  // the other value of the pair is in the neighbouring thread
          const float other = __shfl_xor_sync(0xFFFFFFFF, y[i][0], 1);
          if (inside) c[0] = cos[at % K / 2], s[0] = sin[at % K / 2];
          y[i][0] = y[i][0] * c[0] + other * (at % 2 ? s[0] : -s[0]);
        } else {
          if (i == 0 || !same_angles) load_angles<P>(cos, sin, at % K, inside, c, s);
#pragma unroll
          for (int j = 0; j < P; j += 2) {
            const float even = y[i][j], odd = y[i][j + 1];
            y[i][j] = even * c[j / 2] - odd * s[j / 2];
            y[i][j + 1] = odd * c[j / 2] + even * s[j / 2];
          }
        }
      }
      if (inside) store(out + at, y[i]);
    }
  }
}

// Whether every row and every head of it starts at a multiple of 16 bytes.
bool wide(const QkNormRopeParams& p, int pack) {
  const std::int64_t sizes[] = {p.B, p.L, p.N};
  bool ok = aligned(p.x) && aligned(p.out) && aligned(p.gain.data) && p.K % pack == 0;
  for (int i = 0; i < 3; ++i) ok = ok && (sizes[i] == 1 || p.x_strides[i] % pack == 0);
  if (!p.cos) return ok;
  return ok && aligned(p.cos) && aligned(p.sin) && p.K % 8 == 0 &&
         (p.L == 1 || (p.cos_stride % 4 == 0 && p.sin_stride % 4 == 0));
}

}  // namespace

void qk_norm_rope(const QkNormRopeParams& p, cudaStream_t stream) {
  const std::int64_t D = p.over_heads ? p.N * p.K : p.K, rows = p.over_heads ? p.B * p.L : p.B * p.L * p.N;
  if (rows == 0 || D == 0) return;
  const RowShape shape = row_shape(D, 2);
  const dim3 block(shape.lanes, shape.rows);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const float inverse = 1.0f / static_cast<float>(D);
    if (wide(p, kPack<T>)) {
      PYSORA_LAUNCH((qk_norm_rope_kernel<T, kPack<T>>), row_blocks(rows, shape), block, 0, stream, p, inverse);
    } else {
      PYSORA_LAUNCH((qk_norm_rope_kernel<T, 1>), row_blocks(rows, shape), block, 0, stream, p, inverse);
    }
  });
}

}  // namespace pysora::cuda
