#include "runtime/backend/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moed::backend {
namespace {

#if defined(__x86_64__)

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// CPUID leaf 7, EDX bit 22: AMX-BF16, bit 24: AMX-TILE.
bool HasAmxBf16() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kNeeded) == kNeeded;
}

// Linux 5.16: tile data is a state that a process asks for (Documentation/arch/x86/xstate.rst).
bool KernelEnablesTiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuFeatures Detect() {
  const bool avx512_bf16 = HasAvx512() && __builtin_cpu_supports("avx512bf16");
  return {.avx512_bf16 = avx512_bf16,
          .amx_bf16 = avx512_bf16 && HasAmxBf16() && KernelEnablesTiles()};
}

std::string_view VectorSetName() {
  if (HasAvx512()) return "AVX-512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "AVX2";
  return "SSE4";
}

#else

CpuFeatures Detect() { return {}; }

std::string_view VectorSetName() { return "portable vectors"; }

#endif

}  // namespace

const CpuFeatures& DetectCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

std::string_view InstructionSetName() {
  if (DetectCpuFeatures().amx_bf16) return "AMX";
  if (DetectCpuFeatures().avx512_bf16) return "AVX512-BF16";
  return VectorSetName();
}

}  // namespace moed::backend
