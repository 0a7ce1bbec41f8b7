#include "runtime/backend/cold_mailbox.h"

namespace moed::backend {
namespace {

class Cutter {
 public:
  explicit Cutter(std::byte* memory) : memory_(memory) {}

  template <typename T>
  T* Cut(int64_t count) {
    T* const part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    bytes_ += (bytes + kColdMailboxAlignment - 1) / kColdMailboxAlignment * kColdMailboxAlignment;
    return part;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  size_t bytes_ = 0;
};

ColdMailbox Cut(const ColdMailboxSize& size, Cutter& cutter) {
  ColdMailbox mailbox;
  mailbox.request = cutter.Cut<ColdRequest>(1);
  mailbox.reply = cutter.Cut<ColdReply>(1);
  mailbox.items = cutter.Cut<ColdItem>(size.max_items);
  mailbox.pairs = cutter.Cut<ColdPair>(size.max_pairs);
  mailbox.x = cutter.Cut<BFloat16>(size.max_rows * size.row_values);
  mailbox.sums = cutter.Cut<float>(size.max_rows * size.hidden);
  mailbox.row_values = size.row_values;
  mailbox.hidden = size.hidden;
  return mailbox;
}

}  // namespace

size_t ColdMailboxBytes(const ColdMailboxSize& size) {
  Cutter cutter(nullptr);
  Cut(size, cutter);
  return cutter.bytes();
}

ColdMailbox CutColdMailbox(const ColdMailboxSize& size, std::byte* memory) {
  Cutter cutter(memory);
  return Cut(size, cutter);
}

}  // namespace moed::backend
