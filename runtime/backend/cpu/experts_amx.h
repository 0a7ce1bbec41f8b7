// The kernels of experts_kernels.h in AMX tiles, called only where the CPU has them and the kernel
// has enabled them. A tile is 16 rows of 64 bytes: of A or of neurons' weights 16 rows by 32 of
// depth, or a panel's 16 columns by 32 of depth. Reads subnormals as zero.
#pragma once

#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

// From so many rows on tiles are faster than vectors.
constexpr int kAmxTileRows = 4;

// Up to kMaxFewRows rows. Neurons that do not fill a tile, and fewer rows than kAmxTileRows, go
// through FewRowsAvx512.
void FewRowsAmx(const ExpertNeurons& neurons, const FewRows& rows);
void MultiplyAmx(const PanelMultiply& product);

}  // namespace moed::backend
