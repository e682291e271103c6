#include "pysora/adaln.h"

#include "launch.h"
#include "rows.h"

// One pass: a token stays in its threads' registers from the mean, over the variance around it (no cancellation), to
// the result. The grid goes through the tokens in steps; they find their timesteps' rows in the caches.
namespace pysora::cuda {
namespace {

// sum / D, nearly as exact as a division, which would be a call.
__device__ float share(float sum, float D, float inverse) {
  const float quotient = sum * inverse;
  return fmaf(fmaf(-quotient, D, sum), inverse, quotient);
}

// blockDim is (threads of a token, tokens of a block); inverse is 1 / D.
template <class T, int P>
__global__ void __launch_bounds__(kMostLanes) adaln_kernel(const __grid_constant__ AdalnParams p, float inverse) {
  constexpr int kSteps = kHeld / P;
  const unsigned D = static_cast<unsigned>(p.D), L = static_cast<unsigned>(p.L);
  const unsigned rows = static_cast<unsigned>(p.B) * L, first = threadIdx.x * P, step = blockDim.x * P;
  const float width_f = static_cast<float>(p.D);
  RowSum sum(blockDim.x);
  for (unsigned start = blockIdx.x * blockDim.y; start < rows; start += gridDim.x * blockDim.y) {
    const unsigned row = start + threadIdx.y, b = row / L, l = row % L;
    const unsigned width = row < rows ? D : 0;  // threads without a token hold nothing of it
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    float y[kSteps][P] = {}, total = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (first + i * step < width) load(x + first + i * step, y[i]);
#pragma unroll
      for (int j = 0; j < P; ++j) total += y[i][j];
    }
    const float mean = p.layer ? share(sum(total), width_f, inverse) : 0.0f;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const bool inside = first + i * step < width;
#pragma unroll
      for (int j = 0; j < P; ++j) {
        y[i][j] = inside ? y[i][j] - mean : 0.0f;
        squares = fmaf(y[i][j], y[i][j], squares);
      }
    }
    const float factor = rsqrtf(share(sum(squares), width_f, inverse) + p.eps);
    const std::int64_t timestep = width && p.table.first.data ? timestep_row(p.table, b, l) : 0;
    const std::int64_t shift_at = timestep < 0 ? 0 : timestep * p.table.stride;
    T* out = static_cast<T*>(p.out) + std::int64_t{row} * D;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned at = first + i * step;
      const bool inside = at < width;
      float operand[P] = {};
#pragma unroll
      for (int j = 0; j < P; ++j) y[i][j] *= timestep < 0 ? NAN : factor;
      if (p.gain.data) {
        load_in_pairs(p.gain, at, inside, operand);
#pragma unroll
        for (int j = 0; j < P; ++j) y[i][j] *= operand[j];
      }
      if (p.bias.data) {
        load_in_pairs(p.bias, at, inside, operand);
#pragma unroll
        for (int j = 0; j < P; ++j) y[i][j] += operand[j];
      }
      if (p.table.first.data) {
        float shift[P] = {};
        load_in_pairs(p.table.first, shift_at + p.to_scale + at, inside, operand);
        load_in_pairs(p.table.first, shift_at + at, inside, shift);
#pragma unroll
        for (int j = 0; j < P; ++j) y[i][j] = fmaf(y[i][j], 1.0f + operand[j], shift[j]);
      }
      if (inside) store(out + at, y[i]);
    }
  }
}

// Whether every row of every operand starts at a multiple of 16 bytes, or of a pack's size.
bool wide(const AdalnParams& p, int pack) {
  const std::int64_t sizes[] = {p.B, p.L};
  bool ok = aligned(p.x) && aligned(p.out) && aligned(p.gain.data) && aligned(p.bias.data) && p.D % pack == 0;
  for (int i = 0; i < 2; ++i) ok = ok && (sizes[i] == 1 || p.x_strides[i] % pack == 0);
  return ok && aligned(p.table.first.data) && p.to_scale % pack == 0 && (p.table.U <= 1 || p.table.stride % pack == 0);
}

}  // namespace

void adaln(const AdalnParams& p, cudaStream_t stream) {
  if (p.B * p.L == 0 || p.D == 0) return;
  const RowShape shape = row_shape(p.D, 2);
  const dim3 block(shape.lanes, shape.rows);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const float inverse = 1.0f / static_cast<float>(p.D);
    if (wide(p, kPack<T>)) {
      PYSORA_LAUNCH((adaln_kernel<T, kPack<T>>), row_blocks(p.B * p.L, shape), block, 0, stream, p, inverse);
    } else {
      PYSORA_LAUNCH((adaln_kernel<T, 1>), row_blocks(p.B * p.L, shape), block, 0, stream, p, inverse);
    }
  });
}

}  // namespace pysora::cuda
