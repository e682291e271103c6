#pragma once
#include <vector>

#include "pysora/ops.h"

namespace pysora {

// One pointer per op, all compiled for the same instruction set.
struct CpuKernels {
  const char* isa;
#define PYSORA_OP(name, Params) void (*name)(const Params&);
#define PYSORA_CPU_OP PYSORA_OP
#include "pysora/ops.def"
};

const CpuKernels& cpu();              // the best table this processor runs, or the one that PYSORA_CPU_ISA names
std::vector<const char*> cpu_isas();  // what this processor runs, best first
void use_cpu_isa(const char* isa);    // throws std::invalid_argument for what it does not run

}  // namespace pysora
