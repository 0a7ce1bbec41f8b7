#include "runtime/backend/cpu/experts_kernels.h"

#include "runtime/backend/cpu/cpu_features.h"
#include "runtime/backend/cpu/experts_amx.h"
#include "runtime/backend/cpu/experts_avx512.h"
#include "runtime/backend/cpu/experts_portable.h"

namespace moed::backend {

const ExpertKernels& PortableExpertKernels() {
  static constexpr ExpertKernels kKernels = {.name = "portable",
                                             .few_rows_limit = kPortableFewRows,
                                             .tile_rows = kMaxFewRows + 1,
                                             .few_rows = FewRowsPortable,
                                             .order_sums = OrderSumsPortable,
                                             .multiply = MultiplyPortable};
  return kKernels;
}

const ExpertKernels* Avx512Bf16ExpertKernels() {
  static constexpr ExpertKernels kKernels = {.name = "AVX512-BF16",
                                             .few_rows_limit = kAvx512FewRows,
                                             .tile_rows = kMaxFewRows + 1,
                                             .few_rows = FewRowsAvx512,
                                             .order_sums = OrderSumsAvx512,
                                             .multiply = MultiplyAvx512};
  return DetectCpuFeatures().avx512_bf16 ? &kKernels : nullptr;
}

const ExpertKernels* AmxExpertKernels() {
  static constexpr ExpertKernels kKernels = {.name = "AMX",
                                             .few_rows_limit = kMaxFewRows,
                                             .tile_rows = kAmxTileRows,
                                             .few_rows = FewRowsAmx,
                                             .order_sums = OrderSumsAvx512,
                                             .multiply = MultiplyAmx};
  return DetectCpuFeatures().amx_bf16 ? &kKernels : nullptr;
}

const ExpertKernels& BestExpertKernels() {
  if (const ExpertKernels* kernels = AmxExpertKernels()) return *kernels;
  if (const ExpertKernels* kernels = Avx512Bf16ExpertKernels()) return *kernels;
  return PortableExpertKernels();
}

}  // namespace moed::backend
