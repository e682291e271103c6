#include "pysora/noise.h"

#include "launch.h"
#include "rows.h"

// The same numbers and the same order of operations as pysora/ops/noise.py. Every operation is an IEEE one that the
// compiler may not fuse with another (__fadd_rn and its like), so that the bits are those of every other backend.
namespace pysora::cuda {
namespace {

constexpr int kBlock = 128;

// Philox4x32-10 (Salmon et al. 2011): four words from a counter and a key.
__device__ uint4 philox(uint4 counter, std::uint32_t k0, std::uint32_t k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t high0 = __umulhi(counter.x, 0xD2511F53u), low0 = counter.x * 0xD2511F53u;
    const std::uint32_t high1 = __umulhi(counter.z, 0xCD9E8D57u), low1 = counter.z * 0xCD9E8D57u;
    counter = {high1 ^ counter.y ^ k0, low1, high0 ^ counter.w ^ k1, low0};
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return counter;
}

// The polynomial with these coefficients, the constant one first.
__device__ float polynomial(float, float c) {
  return c;
}
template <class... More>
__device__ float polynomial(float x, float c, More... more) {
  return __fadd_rn(__fmul_rn(polynomial(x, more...), x), c);
}

__device__ float normal(std::uint32_t bits) {
  const float p = __fmul_rn(__fadd_rn(__int2float_rn(static_cast<int>(bits & 0x7FFFFFFFu)), 0.5f), 0x1p-32f);
  const int q = __float_as_int(__fmul_rn(__fmul_rn(p, __fsub_rn(1.0f, p)), 4.0f));
  const int exponent = (q - 0x3F400000) >> 23;
  const float t = __fsub_rn(__int_as_float(q - (exponent << 23)), 1.0f);
  const float log = polynomial(t, -0.5f, 0.33333454f, -0.25000054f, 0.19990607f, -0.16647768f, 0.14482063f, -0.1316223f,
                               0.104483135f, -0.044909436f);
  const float w =
      -__fadd_rn(__fmul_rn(__int2float_rn(exponent), 0.6931472f), __fadd_rn(t, __fmul_rn(__fmul_rn(t, t), log)));
  float shape;
  if (w < 6.0f) {
    shape = polynomial(__fsub_rn(w, 3.0f), 2.2960353f, 0.34171703f, -0.008115585f, -0.0011825938f, 0.0002764489f,
                       -1.795688e-05f, -2.6668918e-06f, 6.3170523e-07f, -6.0962204e-09f, -7.61664e-09f);
  } else {
    shape = polynomial(__fsub_rn(__fsqrt_rn(w), 3.5f), 4.717089f, 1.4246343f, 0.004639435f, -0.0029152094f,
                       0.0015124404f, -0.0009651014f, 0.00068646064f, -0.00032885466f, 4.0342202e-05f, 1.6974034e-05f);
  }
  const float z = __fmul_rn(__fsub_rn(1.0f, __fadd_rn(p, p)), shape);
  return bits > 0x7FFFFFFFu ? -z : z;
}

// A thread makes four channels of P pixels side by side; `items` threads' worth in all.
template <int P>
__global__ void __launch_bounds__(kBlock) noise_kernel(const __grid_constant__ NoiseParams p, unsigned items) {
  const unsigned C = static_cast<unsigned>(p.C), T = static_cast<unsigned>(p.T), H = static_cast<unsigned>(p.H);
  const unsigned W = static_cast<unsigned>(p.W), across = W / P;
  for (unsigned item = blockIdx.x * kBlock + threadIdx.x; item < items; item += gridDim.x * kBlock) {
    const unsigned x = item % across * P, y = item / across % H, t = item / across / H % T,
                   group = item / across / H / T;
    float z[4][P];
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const uint4 words = philox({p.origin[0] + t, p.origin[1] + y, p.origin[2] + x + i, group}, p.seed, p.sample);
      z[0][i] = normal(words.x), z[1][i] = normal(words.y), z[2][i] = normal(words.z), z[3][i] = normal(words.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned c = group * 4 + i;
      if (c < C) store(p.out + ((std::int64_t{c} * T + t) * H + y) * W + x, z[i]);
    }
  }
}

template <int P>
void launch(const NoiseParams& p, cudaStream_t stream) {
  const std::int64_t items = ceil_div(p.C, 4) * p.T * p.H * (p.W / P);
  PYSORA_LAUNCH((noise_kernel<P>), row_blocks(items, {1, kBlock}), kBlock, 0, stream, p, static_cast<unsigned>(items));
}

}  // namespace

void noise(const NoiseParams& p, cudaStream_t stream) {
  if (p.C * p.T * p.H * p.W == 0) return;
  if (aligned(p.out) && p.W % 4 == 0) {
    launch<4>(p, stream);
  } else {
    launch<1>(p, stream);
  }
}

}  // namespace pysora::cuda
