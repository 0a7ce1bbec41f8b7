// Turns the three matrices of an expert into its blob piece by piece: a piece is read into a small
// buffer of the calling thread, stays in that core's cache, and is laid out from there. So an
// expert needs no second copy in memory, however large it is. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "runtime/backend/dtype.h"
#include "runtime/backend/expert_format.h"
#include "runtime/backend/tensor.h"
#include "runtime/model/expert_source.h"

namespace moed::model {

// A part of an expert as it is stored.
struct StoredPart {
  backend::DType dtype = backend::DType::kBF16;
  uint64_t file_offset = 0;  // of its first row, if it lies in a file
};
// Gate, up and down.
using StoredParts = std::array<StoredPart, 3>;

// Fills `rows` with the rows of a part from `first_row` on.
using ReadRows = absl::FunctionRef<absl::Status(backend::ExpertPart part, int64_t first_row,
                                                const backend::Tensor& rows)>;

// Writes a share of the format.blob_bytes() of `blob`. Stops at the first error of `read` and
// returns it; the share is then undefined.
absl::Status EncodeInPieces(const backend::ExpertFormat& format, const StoredParts& stored,
                            ReadShare share, ReadRows read, std::span<std::byte> blob);

}  // namespace moed::model
