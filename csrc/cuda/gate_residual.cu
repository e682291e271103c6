#include "pysora/gate_residual.h"

#include <algorithm>

#include "launch.h"
#include "rows.h"

// One pass: the threads of a row step through it side by side, and the grid steps through the rows. Product and sum are
// rounded one by one, as in the reference: the bits are the CPU's.
namespace pysora::cuda {
namespace {

constexpr int kMostThreads = 256;  // of a block; longer rows take several rounds

template <class T, int P>
__global__ void __launch_bounds__(kMostThreads) gate_residual_kernel(const __grid_constant__ GateResidualParams p) {
  constexpr int kSteps = P == 1 ? 4 : 2;  // in flight together
  const unsigned D = static_cast<unsigned>(p.D), L = static_cast<unsigned>(p.L);
  const unsigned rows = static_cast<unsigned>(p.B) * L, step = blockDim.x * P;
  const unsigned rounds = (D + kSteps * step - 1) / (kSteps * step);
  for (unsigned start = blockIdx.x * blockDim.y; start < rows; start += gridDim.x * blockDim.y) {
    const unsigned row = start + threadIdx.y, b = row / L, l = row % L;
    const unsigned width = row < rows ? D : 0;  // threads without a row have no values of it
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    const std::int64_t y = b * p.y_strides[0] + l * p.y_strides[1];
    const std::int64_t timestep = width ? timestep_row(p.gate, b, l) : 0;
    T* out = static_cast<T*>(p.out) + std::int64_t{row} * D;
    // The same rounds for all threads, as the compiler can see: it gives shuffles in others a slow path.
    for (unsigned round = 0; round < rounds; ++round) {
      const unsigned base = round * (kSteps * step) + threadIdx.x * P;
      float sum[kSteps][P], branch[kSteps][P], gate[kSteps][P];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const unsigned at = base + i * step;
        const bool inside = at < width;
        if (inside) load(x + at, sum[i]), load(p.y, y + at, branch[i]);
        load_in_pairs(p.gate.first, timestep * p.gate.stride + at, inside && timestep >= 0, gate[i]);
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int j = 0; j < P; ++j) {
          const float factor = timestep < 0 ? NAN : gate[i][j];
          sum[i][j] = __fadd_rn(sum[i][j], __fmul_rn(branch[i][j], factor));
        }
        if (base + i * step < width) store(out + base + i * step, sum[i]);
      }
    }
  }
}

// Whether every row starts at a multiple of 16 bytes, or of a pack's size.
bool wide(const GateResidualParams& p, int pack) {
  const std::int64_t sizes[] = {p.B, p.L};
  bool ok = aligned(p.x) && aligned(p.y.data) && aligned(p.gate.first.data) && aligned(p.out) && p.D % pack == 0 &&
            (p.gate.U == 1 || p.gate.stride % pack == 0);
  for (int i = 0; i < 2; ++i) ok = ok && (sizes[i] == 1 || (p.x_strides[i] % pack == 0 && p.y_strides[i] % pack == 0));
  return ok;
}

}  // namespace

void gate_residual(const GateResidualParams& p, cudaStream_t stream) {
  if (p.B * p.L == 0 || p.D == 0) return;
  const RowShape shape = row_shape(std::min<std::int64_t>(p.D, kMostThreads * kHeld), 2);
  const dim3 block(shape.lanes, shape.rows);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (wide(p, kPack<T>)) {
      PYSORA_LAUNCH((gate_residual_kernel<T, kPack<T>>), row_blocks(p.B * p.L, shape), block, 0, stream, p);
    } else {
      PYSORA_LAUNCH((gate_residual_kernel<T, 1>), row_blocks(p.B * p.L, shape), block, 0, stream, p);
    }
  });
}

}  // namespace pysora::cuda
