#if defined(PYSORA_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "pysora/cpu.h"

namespace pysora {

namespace baseline {
extern const CpuKernels table;
}
#if defined(PYSORA_X86)
namespace avx2 {
extern const CpuKernels table;
}
namespace avx512 {
extern const CpuKernels table;
}
namespace avx512_bf16 {
extern const CpuKernels table;
}
#endif
#if defined(PYSORA_AMX)
namespace amx_bf16 {
extern const CpuKernels table;
}
#endif

namespace {

#if defined(PYSORA_AMX)
// Linux lends a process the registers of the matrix unit when it asks.
bool lends_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool lent = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return lent;
}
#endif

std::vector<const CpuKernels*> runnable() {
  std::vector<const CpuKernels*> tables;
#if defined(PYSORA_X86)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#if defined(PYSORA_AMX)
  if (bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
      __builtin_cpu_supports("amx-int8") && lends_tiles())
    tables.push_back(&amx_bf16::table);
#endif
  if (bf16) tables.push_back(&avx512_bf16::table);
  if (avx512) tables.push_back(&avx512::table);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&avx2::table);
#endif
  tables.push_back(&baseline::table);
  return tables;
}

const CpuKernels& find(const char* isa, const char* source) {
  std::string known;
  for (const CpuKernels* table : runnable()) {
    if (!std::strcmp(table->isa, isa)) return *table;
    known += std::string(known.empty() ? "" : ", ") + table->isa;
  }
  throw std::invalid_argument(std::string(source) + ": this processor runs " + known + ", got " + isa);
}

std::atomic<const CpuKernels*> active{nullptr};

}  // namespace

std::vector<const char*> cpu_isas() {
  std::vector<const char*> names;
  for (const CpuKernels* table : runnable()) names.push_back(table->isa);
  return names;
}

void use_cpu_isa(const char* isa) {
  active = &find(isa, "isa");
}

const CpuKernels& cpu() {
  if (const CpuKernels* table = active) return *table;
  const char* wanted = std::getenv("PYSORA_CPU_ISA");
  const CpuKernels& table = wanted && *wanted ? find(wanted, "PYSORA_CPU_ISA") : *runnable().front();
  active = &table;
  return table;
}

}  // namespace pysora
