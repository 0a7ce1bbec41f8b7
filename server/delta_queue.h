// The deltas that wait to be written to one streaming client, bounded in count and bytes: while the
// client keeps up, each stays as it came; when it lags, deltas of one sequence are joined; past the
// limit of bytes no more are taken. Owned by a stream's buffer.
#pragma once

#include <cstddef>
#include <deque>

#include "runtime/engine/request.h"

namespace moed::server {

class DeltaQueue {
 public:
  DeltaQueue(size_t max_messages, size_t max_bytes)
      : max_messages_(max_messages), max_bytes_(max_bytes) {}

  // False if the limit of bytes is passed; the delta is dropped.
  bool Push(engine::Delta delta);
  // The oldest; REQUIRES: not empty().
  engine::Delta Pop();
  void Clear();
  bool empty() const { return deltas_.empty(); }

 private:
  bool Join(engine::Delta& delta);

  const size_t max_messages_;
  const size_t max_bytes_;
  std::deque<engine::Delta> deltas_;
  size_t bytes_ = 0;
};

}  // namespace moed::server
