#include "runtime/model/direct_file.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/host_memory.h"

namespace moed::model {
namespace {

// What offsets and lengths are multiples of, and addresses: enough for almost every disk, and
// others refuse.
constexpr size_t kBlockBytes = 4096;
constexpr size_t kSectorBytes = 512;
// Of one request: as much as a disk needs to be busy with few of them.
constexpr size_t kMostBytes = size_t{2} << 20;
// Asking the page cache for what it lacks makes it read that: so it is asked for little, and for
// more only behind what it had.
constexpr size_t kCachedStepBytes = size_t{128} << 10;

// This thread's buffer; null without memory.
std::byte* AlignedBuffer() {
  thread_local backend::Buffer buffer;
  if (buffer.bytes() == 0) {
    auto allocated = backend::AllocateHostMemory(kMostBytes + 2 * kBlockBytes, "reading a file");
    if (!allocated.ok()) return nullptr;
    buffer = *std::move(allocated);
  }
  return buffer.data();
}

size_t RoundUp(size_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes; }

// In pieces of equal size, so that the last one is not tiny.
size_t FirstPiece(size_t bytes) {
  const size_t pieces = (bytes + kMostBytes - 1) / kMostBytes;
  return (bytes + pieces - 1) / pieces;
}

// A read of whole blocks from which `destination` is filled: itself the place of those within it if
// it lies like the file, with only the blocks at its ends in the buffer; else all are there.
class WholeBlocks {
 public:
  WholeBlocks(uint64_t offset, std::span<std::byte> destination, std::byte* buffer)
      : destination_(destination), buffer_(buffer), before_(offset % kBlockBytes), offset_(offset) {
    const size_t bytes = RoundUp(before_ + destination.size());
    head_ = before_ == 0 ? 0 : kBlockBytes - before_;
    const size_t tail = (before_ + destination.size()) % kBlockBytes;
    tail_ = destination.size() - std::min(tail, destination.size());
    const bool alike =
        (reinterpret_cast<uintptr_t>(destination.data()) - offset) % kSectorBytes == 0;
    if (!alike || head_ >= tail_) {
      head_ = tail_ = destination.size();
      Add(buffer, bytes);
      return;
    }
    if (head_ > 0) Add(buffer, kBlockBytes);
    Add(destination.data() + head_, tail_ - head_);
    if (tail > 0) Add(buffer + kBlockBytes, kBlockBytes);
  }

  const iovec* vectors() const { return vectors_.data(); }
  int num_vectors() const { return num_vectors_; }
  off_t offset() const { return static_cast<off_t>(offset_ - before_); }

  // Once `count` bytes were read: copies what is in the buffer, and returns how much of the
  // destination is there.
  size_t Finish(size_t count) const {
    if (count <= before_) return 0;
    const size_t read = std::min(count - before_, destination_.size());
    if (head_ > 0) std::memcpy(destination_.data(), buffer_ + before_, std::min(head_, read));
    if (tail_ < read) {
      std::memcpy(destination_.data() + tail_, buffer_ + kBlockBytes, read - tail_);
    }
    return read;
  }

 private:
  void Add(std::byte* data, size_t bytes) { vectors_[num_vectors_++] = {data, bytes}; }

  std::span<std::byte> destination_;
  std::byte* buffer_;
  size_t before_;  // of the first block, what is not wanted
  uint64_t offset_;
  size_t head_ = 0;  // where in the destination the blocks that lie there begin
  size_t tail_ = 0;  // and end
  std::array<iovec, 3> vectors_;
  int num_vectors_ = 0;
};

}  // namespace

DirectFile::~DirectFile() {
  if (direct_ >= 0) close(direct_);
}

size_t DirectFile::Read(uint64_t offset, std::span<std::byte> destination) {
  std::call_once(opened_, [this] { Open(); });
  size_t done = 0;
  while (done < destination.size() && !refused_.load(std::memory_order_relaxed)) {
    const auto rest = destination.subspan(done);
    auto piece = rest.first(FirstPiece(rest.size()));
    const size_t cached = ReadCached(offset + done, piece);
    done += cached;
    piece = piece.subspan(cached);
    if (piece.empty() || refused_.load(std::memory_order_relaxed)) continue;
    const size_t read = ReadAround(offset + done, piece);
    if (read == 0) break;
    done += read;
  }
  return done;
}

// Again, by what is open already: behind the path may be another file by now.
void DirectFile::Open() {
  const std::string path = absl::StrCat("/proc/self/fd/", cached_);
  direct_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (direct_ < 0) Refuse();
}

// What the page cache has from the beginning of `destination` on.
size_t DirectFile::ReadCached(uint64_t offset, std::span<std::byte> destination) {
  size_t done = 0;
  size_t step = kBlockBytes - offset % kBlockBytes;
  while (done < destination.size()) {
    const auto wanted = destination.subspan(done, std::min(step, destination.size() - done));
    const iovec vector = {wanted.data(), wanted.size()};
    const ssize_t count =
        preadv2(cached_, &vector, 1, static_cast<off_t>(offset + done), RWF_NOWAIT);
    if (count < 0 && errno != EAGAIN && errno != EINTR) return done + Refuse();
    if (count > 0) done += static_cast<size_t>(count);
    if (count < static_cast<ssize_t>(wanted.size())) break;
    step = kCachedStepBytes;
  }
  return done;
}

// At most kMostBytes.
size_t DirectFile::ReadAround(uint64_t offset, std::span<std::byte> destination) {
  std::byte* const buffer = AlignedBuffer();
  if (buffer == nullptr) return Refuse();
  const WholeBlocks blocks(offset, destination, buffer);
  ssize_t count = 0;
  do {
    count = preadv(direct_, blocks.vectors(), blocks.num_vectors(), blocks.offset());
  } while (count < 0 && errno == EINTR);
  return count < 0 ? Refuse() : blocks.Finish(static_cast<size_t>(count));
}

size_t DirectFile::Refuse() {
  refused_.store(true, std::memory_order_relaxed);
  return 0;
}

}  // namespace moed::model
