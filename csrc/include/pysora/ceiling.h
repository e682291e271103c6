#pragma once
#include <cstdint>

namespace pysora {

// What this machine can do at most, measured: arithmetic that never leaves the registers, or a pass over memory.
enum class Loop { fp32, bf16, triad };

struct CeilingParams {
  Loop loop;
  std::int64_t tasks, rounds;  // fp32, bf16: rounds of each task; they are handed out one by one
  const float *b, *c;          // triad, [n]: a = b + 3 c
  float* a;                    // [n], 64-byte aligned
  std::int64_t n;              // a multiple of 16
  double* work;                // [1] result: floating-point operations, or bytes
  int threads;
};

}  // namespace pysora
