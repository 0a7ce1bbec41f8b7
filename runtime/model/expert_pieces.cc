#include "runtime/model/expert_pieces.h"

#include <algorithm>
#include <vector>

#include "absl/base/internal/raw_logging.h"

namespace moed::model {
namespace {

using backend::ExpertPart;

// Fits in a core's L2 cache beside the lines that are written.
constexpr int64_t kPieceBytes = 512 << 10;
// The layout of down works on whole cache lines of this many rows.
constexpr int64_t kRowMultiple = 32;

// This thread's buffer, at least `bytes` long.
std::byte* StagingBuffer(size_t bytes) {
  thread_local std::vector<std::byte> buffer;
  if (buffer.size() < bytes) buffer.resize(bytes);
  return buffer.data();
}

int64_t RowsOfAPiece(int64_t row_bytes) {
  const int64_t rows = kPieceBytes / row_bytes / kRowMultiple * kRowMultiple;
  return std::max(rows, kRowMultiple);
}

}  // namespace

absl::Status EncodeInPieces(const backend::ExpertFormat& format, const PartTypes& dtypes,
                            ReadRows read, std::span<std::byte> blob) {
  ABSL_RAW_CHECK(blob.size() >= format.blob_bytes(), "the blob of an expert is too small");
  for (const ExpertPart part : {ExpertPart::kGate, ExpertPart::kUp, ExpertPart::kDown}) {
    const bool is_down = part == ExpertPart::kDown;
    const int64_t rows = is_down ? format.hidden() : format.intermediate();
    const int64_t columns = is_down ? format.intermediate() : format.hidden();
    const backend::DType dtype = dtypes[static_cast<size_t>(part)];
    const int64_t row_bytes = columns * static_cast<int64_t>(backend::SizeOf(dtype));
    const int64_t piece_rows = std::min(RowsOfAPiece(row_bytes), rows);
    std::byte* const staging = StagingBuffer(piece_rows * row_bytes);
    for (int64_t first = 0; first < rows; first += piece_rows) {
      const backend::Tensor piece(staging, dtype, {std::min(piece_rows, rows - first), columns});
      absl::Status status = read(part, first, piece);
      if (!status.ok()) return status;
      format.EncodeRows(part, first, piece, blob);
    }
  }
  return absl::OkStatus();
}

}  // namespace moed::model
