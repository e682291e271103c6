#include "pysora/cpu.h"

#define PYSORA_STRING_(x) #x
#define PYSORA_STRING(x) PYSORA_STRING_(x)

namespace pysora::PYSORA_ISA {

#define PYSORA_OP(name, Params) void name(const Params&);
#include "pysora/ops.def"
#undef PYSORA_OP

extern const CpuKernels table;
const CpuKernels table = {
    PYSORA_STRING(PYSORA_ISA),
#define PYSORA_OP(name, Params) name,
#include "pysora/ops.def"
#undef PYSORA_OP
};

}  // namespace pysora::PYSORA_ISA
