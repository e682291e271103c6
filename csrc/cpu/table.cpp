#include "pysora/cpu.h"

#define PYSORA_STRING_(x) #x
#define PYSORA_STRING(x) PYSORA_STRING_(x)

namespace pysora::PYSORA_ISA {

#define PYSORA_OP(name, Params) void name(const Params&);
#define PYSORA_CPU_OP PYSORA_OP
#include "pysora/ops.def"

extern const CpuKernels table;
const CpuKernels table = {
    PYSORA_STRING(PYSORA_ISA),
#define PYSORA_OP(name, Params) name,
#define PYSORA_CPU_OP PYSORA_OP
#include "pysora/ops.def"
};

}  // namespace pysora::PYSORA_ISA
