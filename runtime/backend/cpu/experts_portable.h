// The kernels of experts_kernels.h in Highway: every CPU, the widest vectors it has.
#pragma once

#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

// Rows that FewRowsPortable takes.
constexpr int kPortableFewRows = 12;

void FewRowsPortable(const ExpertNeurons& neurons, const FewRows& rows);
void OrderSumsPortable(float* sums, int64_t count);
void MultiplyPortable(const PanelMultiply& product);

}  // namespace moed::backend
