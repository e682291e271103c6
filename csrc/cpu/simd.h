#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Vectors of the instruction set that this file is compiled for, with the compiler's vector extension. Everything has
// internal linkage: the linker must not merge one instruction set's functions with another's.
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // fp32 lanes
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Vec __attribute__((vector_size(W * 4)));
typedef std::int32_t IVec __attribute__((vector_size(W * 4)));
typedef std::uint32_t UVec __attribute__((vector_size(W * 4)));
typedef std::uint16_t HVec __attribute__((vector_size(W * 2)));

inline Vec splat(float x) {
  return x - Vec{};
}
inline IVec bits(Vec x) {
  return reinterpret_cast<IVec>(x);
}
inline Vec from_bits(IVec x) {
  return reinterpret_cast<Vec>(x);
}

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) {
  std::memcpy(p, &v, sizeof v);
}

inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}

inline float sum_lanes(Vec v) {
  typedef float Quad __attribute__((vector_size(16)));
  Quad part[W / 4];
  std::memcpy(part, &v, sizeof v);
  Quad total = part[0];
  for (int i = 1; i < W / 4; ++i) total = total + part[i];
  return (total[0] + total[2]) + (total[1] + total[3]);
}

// a * b + c, fused where the instruction set can.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline Vec sqrt(Vec x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xFFFF, x);  // GCC 12 warns of its own header in the unmasked one
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  Vec y;
  for (int i = 0; i < W; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
#endif
}

// 2^x, 2^127 or more where that is too large: 0 below the normal range, where Intel's processors take a hundred times
// as long for every product, relative error 3e-7. The polynomial is minimax on [0, 1) (Remez) where the processor
// splits off the whole part, else Taylor's around the nearest integer.
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec f = _mm512_maskz_reduce_ps(0xFFFF, x, 0x09);  // x - floor(x)
  Vec y = splat(1.87757645e-03f);
  y = fma(y, f, splat(8.98934104e-03f));
  y = fma(y, f, splat(5.58263168e-02f));
  y = fma(y, f, splat(2.40153618e-01f));
  y = fma(y, f, splat(6.93153073e-01f));
  y = fma(y, f, splat(9.99999925e-01f));
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, splat(-126.0f), _CMP_NLT_UQ), y, x);
#else
  const Vec above = x < -126.0f ? splat(-126.0f) : x;
  const Vec clamped = above > 127.0f ? splat(127.0f) : above;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = clamped + magic, f = clamped - (shifted - magic);
  Vec y = splat(1.5252734e-05f);  // log(2)^k / k!, k = 7 to 0
  y = fma(y, f, splat(1.5403530e-04f));
  y = fma(y, f, splat(1.3333558e-03f));
  y = fma(y, f, splat(9.6181291e-03f));
  y = fma(y, f, splat(5.5504109e-02f));
  y = fma(y, f, splat(2.4022651e-01f));
  y = fma(y, f, splat(6.9314718e-01f));
  y = fma(y, f, splat(1.0f));
  const Vec scale = from_bits((bits(shifted) - bits(magic) + 127) << 23);
  return x < -126.0f ? Vec{} : y * scale;
#endif
}

// As `exp2`, for weights that are rounded to bf16: relative error 8e-5.
inline Vec exp2_for_bf16(Vec x) {
#if defined(__AVX512F__)
  const Vec f = _mm512_maskz_reduce_ps(0xFFFF, x, 0x09);
  Vec y = splat(7.8024520e-02f);
  y = fma(y, f, splat(2.2606716e-01f));
  y = fma(y, f, splat(6.9583354e-01f));
  y = fma(y, f, splat(9.9992522e-01f));
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, splat(-126.0f), _CMP_NLT_UQ), y, x);
#else
  return exp2(x);
#endif
}

// 1 / x for x from 1 to 2, relative error 1e-7: a division takes three times as long where vectors are wide.
inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  const Vec y = _mm512_maskz_rcp14_ps(0xFFFF, x);
  return fma(y, fma(-x, y, splat(1.0f)), y);
#else
  return 1.0f / x;
#endif
}

// 1 / (1 + exp(-x)), with the exponential of -|x| alone, so that nothing overflows.
inline Vec sigmoid(Vec x) {
  const Vec e = exp2((x < 0.0f ? x : -x) * 1.44269504f);
  return (x < 0.0f ? e : splat(1.0f)) * reciprocal(1.0f + e);
}

// Whether any lane is greater than `limit`; NaN is not.
inline bool any_greater(Vec x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, splat(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(x, splat(limit), _CMP_GT_OQ)) != 0;
#else
  bool any = false;
  for (int i = 0; i < W; ++i) any |= x[i] > limit;
  return any;
#endif
}

// The lanes of the first (half 0) or last (half 1) halves of two vectors in turn: a0 b0 a1 b1 ...
template <int half>
Vec zip(Vec a, Vec b) {
#if defined(__AVX512F__)
  alignas(64) static constexpr std::int32_t order[2][16] = {
      {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23},
      {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}};
  return _mm512_permutex2var_ps(a, _mm512_load_si512(order[half]), b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), half ? 0x31 : 0x20);
#else
  Vec y;
  for (int i = 0; i < W; ++i) y[i] = (i % 2 ? b : a)[half * W / 2 + i / 2];
  return y;
#endif
}

// Rows become columns.
inline void transpose(Vec (&m)[W]) {
  for (int n = 1; n < W; n *= 2) {
    Vec mixed[W];
    for (int i = 0; i < W / 2; ++i) {
      mixed[2 * i] = zip<0>(m[i], m[i + W / 2]);
      mixed[2 * i + 1] = zip<1>(m[i], m[i + W / 2]);
    }
    for (int i = 0; i < W; ++i) m[i] = mixed[i];
  }
}

struct Bf16 {
  std::uint16_t bits;
};

inline float to_float(float x) {
  return x;
}
inline float to_float(Bf16 x) {
  const std::uint32_t wide = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &wide, 4);
  return y;
}

inline void from_float(float x, float& y) {
  y = x;
}
inline void from_float(float x, Bf16& y) {  // to the nearest, ties to even; NaN stays NaN
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  y.bits = static_cast<std::uint16_t>(x != x ? 0x7FC0 : (u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

inline Vec load(const Bf16* p) {
  HVec half;
  std::memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)  // GCC widens in two halves by itself
  return from_bits(reinterpret_cast<IVec>(_mm512_maskz_cvtepu16_epi32(0xFFFF, reinterpret_cast<__m256i>(half))) << 16);
#elif defined(__AVX2__)
  return from_bits(reinterpret_cast<IVec>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half))) << 16);
#else
  return from_bits(__builtin_convertvector(half, IVec) << 16);
#endif
}
// As `from_float`, to the last subnormal: `vcvtneps2bf16` would make zeros of those.
inline void store(Bf16* p, Vec v) {
  const UVec u = reinterpret_cast<UVec>(v);
  const UVec rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
  const HVec half = __builtin_convertvector(v != v ? UVec{} + 0x7FC0 : rounded, HVec);
  std::memcpy(p, &half, sizeof half);
}

}  // namespace
