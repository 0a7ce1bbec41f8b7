#include "runtime/model/expert_pieces.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/base/internal/raw_logging.h"

namespace moed::model {
namespace {

using backend::ExpertPart;

// Fits in a core's L2 cache beside the lines that are written.
constexpr int64_t kPieceBytes = 512 << 10;
// Of what is read once: from a disk, which wants large requests.
constexpr int64_t kOncePieceBytes = 1 << 20;
// The layout of down works on whole cache lines of this many rows.
constexpr int64_t kRowMultiple = 32;
constexpr size_t kFileBlockBytes = 4096;

// This thread's buffer, at least `bytes` long from the start of a block.
std::byte* StagingBuffer(size_t bytes) {
  thread_local std::vector<std::byte> buffer;
  if (buffer.size() < bytes + kFileBlockBytes) buffer.resize(bytes + kFileBlockBytes);
  void* data = buffer.data();
  size_t space = buffer.size();
  return static_cast<std::byte*>(std::align(kFileBlockBytes, bytes, data, space));
}

// One part of an expert, cut along its rows.
struct PartPieces {
  ExpertPart part;
  StoredPart stored;
  int64_t rows;
  int64_t columns;
  int64_t piece_rows;
  Reread reread;

  int64_t count() const { return (rows + piece_rows - 1) / piece_rows; }
  size_t row_bytes() const { return columns * backend::SizeOf(stored.dtype); }
};

PartPieces Cut(const backend::ExpertFormat& format, ExpertPart part, const StoredParts& stored,
               Reread reread) {
  const bool is_down = part == ExpertPart::kDown;
  const int64_t rows = is_down ? format.hidden() : format.intermediate();
  const int64_t columns = is_down ? format.intermediate() : format.hidden();
  PartPieces pieces = {part, stored[static_cast<size_t>(part)], rows, columns, 0, reread};
  const int64_t piece_bytes = reread == Reread::kNever ? kOncePieceBytes : kPieceBytes;
  const auto row_bytes = static_cast<int64_t>(pieces.row_bytes());
  const int64_t piece_rows = piece_bytes / row_bytes / kRowMultiple * kRowMultiple;
  pieces.piece_rows = std::min(std::max(piece_rows, kRowMultiple), rows);
  return pieces;
}

// What is read once lies in the buffer as in the blocks of its file: there it can be read around
// the page cache without a copy.
size_t PlaceInBlock(const PartPieces& pieces, int64_t first_row) {
  if (pieces.reread != Reread::kNever) return 0;
  const size_t place =
      (pieces.stored.file_offset + first_row * pieces.row_bytes()) % kFileBlockBytes;
  return place % backend::SizeOf(pieces.stored.dtype) == 0 ? place : 0;
}

absl::Status EncodePiece(const backend::ExpertFormat& format, const PartPieces& pieces,
                         int64_t index, ReadRows read, std::span<std::byte> blob) {
  const int64_t first = index * pieces.piece_rows;
  const int64_t rows = std::min(pieces.piece_rows, pieces.rows - first);
  const size_t place = PlaceInBlock(pieces, first);
  std::byte* const data = StagingBuffer(place + rows * pieces.row_bytes()) + place;
  const backend::Tensor piece(data, pieces.stored.dtype, {rows, pieces.columns});
  absl::Status status = read(pieces.part, first, piece);
  if (status.ok()) format.EncodeRows(pieces.part, first, piece, blob);
  return status;
}

}  // namespace

absl::Status EncodeInPieces(const backend::ExpertFormat& format, const StoredParts& stored,
                            ReadShare share, ReadRows read, std::span<std::byte> blob) {
  ABSL_RAW_CHECK(blob.size() >= format.blob_bytes(), "the blob of an expert is too small");
  const PartPieces parts[] = {Cut(format, ExpertPart::kGate, stored, share.reread),
                              Cut(format, ExpertPart::kUp, stored, share.reread),
                              Cut(format, ExpertPart::kDown, stored, share.reread)};
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
