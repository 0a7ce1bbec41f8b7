#include "server/delta_queue.h"

#include <iterator>
#include <utility>

namespace moed::server {
namespace {

// Additive, so that joining changes no sum.
size_t PayloadBytes(const engine::Delta& delta) {
  size_t bytes = delta.text.size();
  for (const engine::TokenWithLogprobs& token : delta.tokens) {
    bytes += sizeof(token) + token.top.size() * sizeof(model::TokenLogprob);
  }
  return bytes;
}

}  // namespace

bool DeltaQueue::Push(engine::Delta delta) {
  const size_t bytes = PayloadBytes(delta);
  if (bytes_ + bytes > max_bytes_) return false;
  bytes_ += bytes;
  if (deltas_.size() < max_messages_ || !Join(delta)) deltas_.push_back(std::move(delta));
  return true;
}

bool DeltaQueue::Join(engine::Delta& delta) {
  for (auto queued = deltas_.rbegin(); queued != deltas_.rend(); ++queued) {
    if (queued->index != delta.index) continue;
    queued->text += delta.text;
    queued->tokens.insert(queued->tokens.end(), std::make_move_iterator(delta.tokens.begin()),
                          std::make_move_iterator(delta.tokens.end()));
    return true;
  }
  return false;
}

engine::Delta DeltaQueue::Pop() {
  engine::Delta oldest = std::move(deltas_.front());
  deltas_.pop_front();
  bytes_ -= PayloadBytes(oldest);
  return oldest;
}

void DeltaQueue::Clear() {
  deltas_.clear();
  bytes_ = 0;
}

}  // namespace moed::server
