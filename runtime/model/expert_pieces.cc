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

// One part of an expert, cut along its rows.
struct PartPieces {
  ExpertPart part;
  backend::DType dtype;
  int64_t rows;
  int64_t columns;
  int64_t piece_rows;

  int64_t count() const { return (rows + piece_rows - 1) / piece_rows; }
};

PartPieces Cut(const backend::ExpertFormat& format, ExpertPart part, backend::DType dtype) {
  const bool is_down = part == ExpertPart::kDown;
  const int64_t rows = is_down ? format.hidden() : format.intermediate();
  const int64_t columns = is_down ? format.intermediate() : format.hidden();
  const int64_t row_bytes = columns * static_cast<int64_t>(backend::SizeOf(dtype));
  const int64_t piece_rows = kPieceBytes / row_bytes / kRowMultiple * kRowMultiple;
  return {part, dtype, rows, columns, std::min(std::max(piece_rows, kRowMultiple), rows)};
}

absl::Status EncodePiece(const backend::ExpertFormat& format, const PartPieces& pieces,
                         int64_t index, ReadRows read, std::span<std::byte> blob) {
  const int64_t first = index * pieces.piece_rows;
  const int64_t rows = std::min(pieces.piece_rows, pieces.rows - first);
  const size_t bytes = rows * pieces.columns * backend::SizeOf(pieces.dtype);
  const backend::Tensor piece(StagingBuffer(bytes), pieces.dtype, {rows, pieces.columns});
  absl::Status status = read(pieces.part, first, piece);
  if (status.ok()) format.EncodeRows(pieces.part, first, piece, blob);
  return status;
}

}  // namespace

absl::Status EncodeInPieces(const backend::ExpertFormat& format, const PartTypes& dtypes,
                            ReadShare share, ReadRows read, std::span<std::byte> blob) {
  ABSL_RAW_CHECK(blob.size() >= format.blob_bytes(), "the blob of an expert is too small");
  const PartPieces parts[] = {Cut(format, ExpertPart::kGate, dtypes[0]),
                              Cut(format, ExpertPart::kUp, dtypes[1]),
                              Cut(format, ExpertPart::kDown, dtypes[2])};
  const int64_t total = parts[0].count() + parts[1].count() + parts[2].count();
  const int64_t first = total * share.index / share.count;
  const int64_t end = total * (share.index + 1) / share.count;
  int64_t before = 0;  // pieces of the parts before
  for (const PartPieces& part : parts) {
    const int64_t part_end = std::min(end - before, part.count());
    for (int64_t piece = std::max<int64_t>(first - before, 0); piece < part_end; ++piece) {
      absl::Status status = EncodePiece(format, part, piece, read, blob);
      if (!status.ok()) return status;
    }
    before += part.count();
  }
  return absl::OkStatus();
}

}  // namespace moed::model
