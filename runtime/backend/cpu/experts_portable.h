// The kernels of experts_kernels.h in Highway: every CPU, the widest vectors it has.
#pragma once

#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

void FewRowsPortable(const NeuronRows& neurons, const BFloat16* const* x, int rows, float* scratch,
                     float* y);
void MultiplyPortable(const PanelMultiply& product);

}  // namespace moed::backend
