// Bulk moves of 16-bit values, for laying out an expert: copy, conversion to bf16, and the blocked
// transpose of its down matrix, which checkpoints store [H, I] while a blob stores its columns.
// Pure; any thread.
#pragma once

#include <cstdint>

#include "runtime/backend/dtype.h"

namespace moed::backend {

// Streamed lines go past the cache: for targets that nobody reads soon. They become visible to
// other threads with hwy::FlushStream().
enum class StoreKind : uint8_t { kCached, kStreamed };

// Streamed.
void CopyValues(const uint16_t* source, int64_t count, uint16_t* target);

// IEEE halves or floats, rounded to nearest even; NaN stays a quiet NaN.
void HalvesToBFloat16(const uint16_t* source, int64_t count, BFloat16* target);
void FloatsToBFloat16(const float* source, int64_t count, BFloat16* target);

// target[c * target_stride + r] = source[r * source_stride + c] for r < rows, c < columns. Strides
// are in values.
void TransposeValues(const uint16_t* source, int64_t source_stride, int64_t rows, int64_t columns,
                     uint16_t* target, int64_t target_stride, StoreKind store);

}  // namespace moed::backend
