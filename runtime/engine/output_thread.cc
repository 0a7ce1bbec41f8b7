#include "runtime/engine/output_thread.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace moed::engine {
namespace {

constexpr size_t kMaxPendingTokens = 1 << 16;

template <typename T>
void MoveAppend(std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

void OutputBatch::clear() {
  tokens.clear();
  done.clear();
}

OutputThread::OutputThread(SubmissionQueue* queue, SnapshotBoard* board)
    : queue_(queue), board_(board), thread_([this] { Run(); }) {}

OutputThread::~OutputThread() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void OutputThread::Push(OutputBatch* batch) {
  if (batch->empty()) return;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return pending_.tokens.size() < kMaxPendingTokens; });
    if (pending_.empty()) {
      std::swap(pending_, *batch);
    } else {
      MoveAppend(batch->tokens, pending_.tokens);
      MoveAppend(batch->done, pending_.done);
    }
  }
  batch->clear();
  changed_.notify_all();
}

bool OutputThread::Take(OutputBatch* batch) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !pending_.empty() || ending_; });
    std::swap(pending_, *batch);
  }
  changed_.notify_all();
  return !batch->empty();
}

void OutputThread::Run() {
  OutputBatch batch;
  while (Take(&batch)) {
    Deliver(batch);
    batch.clear();
  }
}

void OutputThread::Deliver(OutputBatch& batch) {
  OutputCounts counts;
  for (TokenEvent& event : batch.tokens) {
    if (event.stream->Push(event.index, std::move(event.token), &counts)) {
      queue_->StopMatched(event.sequence);
    }
  }
  for (DoneEvent& event : batch.done) event.stream->End(event.status, &counts);
  // Before the sinks hear of it: who has been told that a request is done finds it counted.
  board_->Add(counts);
  for (const TokenEvent& event : batch.tokens) event.stream->Flush(event.index);
  for (DoneEvent& event : batch.done) {
    queue_->ReleaseId(event.request_id);
    event.stream->Done(event.status, event.usage);
    event.stream.reset();
    queue_->Close();
  }
}

}  // namespace moed::engine
