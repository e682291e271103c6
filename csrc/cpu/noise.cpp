#include "pysora/noise.h"

#include "pysora/parallel.h"
#include "simd.h"

// The same numbers and the same order of operations as pysora/ops/noise.py: every instruction set gives its bits. This
// file relies on -ffp-contract=off.
namespace pysora::PYSORA_ISA {
namespace {

constexpr float kLog[] = {-0.5f,       0.33333454f, -0.25000054f, 0.19990607f,  -0.16647768f,
                          0.14482063f, -0.1316223f, 0.104483135f, -0.044909436f};
constexpr float kCentre[] = {2.2960353f,     0.34171703f,     -0.008115585f,  -0.0011825938f,  0.0002764489f,
                             -1.795688e-05f, -2.6668918e-06f, 6.3170523e-07f, -6.0962204e-09f, -7.61664e-09f};
constexpr float kTail[] = {4.717089f,      1.4246343f,     0.004639435f,    -0.0029152094f, 0.0015124404f,
                           -0.0009651014f, 0.00068646064f, -0.00032885466f, 4.0342202e-05f, 1.6974034e-05f};

struct Block {
  std::uint32_t word[4][W];
};

// Philox4x32-10 (Salmon et al. 2011) of W counters at once.
void philox(Block& block, std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < W; ++i) {
      const std::uint64_t p0 = block.word[0][i] * std::uint64_t{0xD2511F53};
      const std::uint64_t p1 = block.word[2][i] * std::uint64_t{0xCD9E8D57};
      block.word[0][i] = static_cast<std::uint32_t>(p1 >> 32) ^ block.word[1][i] ^ k0;
      block.word[2][i] = static_cast<std::uint32_t>(p0 >> 32) ^ block.word[3][i] ^ k1;
      block.word[1][i] = static_cast<std::uint32_t>(p1);
      block.word[3][i] = static_cast<std::uint32_t>(p0);
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

template <int N>
Vec polynomial(Vec x, const float (&coefficients)[N]) {
  Vec total = splat(coefficients[N - 1]);
  for (int i = N - 2; i >= 0; --i) total = total * x + coefficients[i];
  return total;
}

Vec normal(const std::uint32_t* words) {
  IVec u;
  std::memcpy(&u, words, sizeof u);
  const Vec p = (__builtin_convertvector(u & 0x7FFFFFFF, Vec) + 0.5f) * 0x1p-32f;
  const IVec q = bits(p * (1.0f - p) * 4.0f);
  const IVec exponent = (q - 0x3F400000) >> 23;
  const Vec t = from_bits(q - (exponent << 23)) - 1.0f;
  const Vec w = -(__builtin_convertvector(exponent, Vec) * 0.6931472f + (t + t * t * polynomial(t, kLog)));
  const Vec centre = polynomial(w - 3.0f, kCentre), tail = polynomial(sqrt(w) - 3.5f, kTail);
  const Vec z = (1.0f - (p + p)) * (w < 6.0f ? centre : tail);
  return u < 0 ? -z : z;
}

}  // namespace

void noise(const NoiseParams& p) {
  const std::int64_t rows = (p.C + 3) / 4 * p.T * p.H;
  parallel_for(p.threads, rows, [&](std::int64_t row, int) {
    const std::int64_t y = row % p.H, t = row / p.H % p.T, group = row / p.H / p.T;
    for (std::int64_t x = 0; x < p.W; x += W) {
      Block block;
      for (int i = 0; i < W; ++i) {
        block.word[0][i] = p.origin[0] + static_cast<std::uint32_t>(t);
        block.word[1][i] = p.origin[1] + static_cast<std::uint32_t>(y);
        block.word[2][i] = p.origin[2] + static_cast<std::uint32_t>(x + i);
        block.word[3][i] = static_cast<std::uint32_t>(group);
      }
      philox(block, p.seed, p.sample);
      const std::int64_t left = p.W - x < W ? p.W - x : W;
      for (std::int64_t c = group * 4; c < p.C && c < group * 4 + 4; ++c) {
        const Vec z = normal(block.word[c % 4]);
        std::memcpy(p.out + ((c * p.T + t) * p.H + y) * p.W + x, &z, static_cast<std::size_t>(left) * sizeof(float));
      }
    }
  });
}

}  // namespace pysora::PYSORA_ISA
