// The product of experts_kernels.h in AMX tiles, called only where the CPU has them and the kernel
// has enabled them. A tile is 16 rows of 64 bytes: 16 rows of A by 32 of depth, or a panel's 16
// columns by 32 of depth. Reads subnormals as zero.
#pragma once

#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

void MultiplyAmx(const PanelMultiply& product);

}  // namespace moed::backend
