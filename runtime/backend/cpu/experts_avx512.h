// The kernels of experts_kernels.h for CPUs with AVX512-BF16, called only there. A product of two
// bf16 pairs is one instruction per 16 sums; it reads subnormals as zero.
#pragma once

#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

// Rows that FewRowsAvx512 takes: their sums fit the registers.
constexpr int kAvx512FewRows = 8;

void FewRowsAvx512(const ExpertNeurons& neurons, const FewRows& rows);
void OrderSumsAvx512(float* sums, int64_t count);
void MultiplyAvx512(const PanelMultiply& product);

}  // namespace moed::backend
