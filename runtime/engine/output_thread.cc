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

void OutputThread::Open(OutputStream* stream) {
  std::lock_guard lock(mutex_);
  open_.insert(stream);
}

void OutputThread::Abandon(const absl::Status& why, std::vector<DoneEvent> unstarted) {
  {
    std::lock_guard lock(mutex_);
    abandonment_ = why;
    for (const DoneEvent& request : unstarted) open_.insert(request.stream.get());
    MoveAppend(unstarted, unstarted_);
  }
  changed_.notify_all();
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

bool OutputThread::Take(OutputBatch* batch, std::vector<OutputStream*>* abandoned) {
  abandoned->clear();
  {
    std::unique_lock lock(mutex_);
    const auto has_abandoned = [&] { return !abandonment_.ok() && !open_.empty(); };
    changed_.wait(lock, [&] { return !pending_.empty() || has_abandoned() || ending_; });
    if (pending_.empty() && !has_abandoned()) return false;
    std::swap(pending_, *batch);
    if (!abandonment_.ok()) DropAbandoned(batch);
    for (const DoneEvent& event : batch->done) open_.erase(event.stream.get());
    if (!abandonment_.ok()) {
      abandoned->assign(open_.begin(), open_.end());
      open_.clear();
    }
  }
  changed_.notify_all();
  return true;
}

void OutputThread::DropAbandoned(OutputBatch* batch) {
  std::erase_if(batch->tokens,
                [&](const TokenEvent& event) { return !open_.contains(event.stream); });
  std::erase_if(batch->done,
                [&](const DoneEvent& event) { return !open_.contains(event.stream.get()); });
}

void OutputThread::Run() {
  OutputBatch batch;
  std::vector<OutputStream*> abandoned;
  while (Take(&batch, &abandoned)) {
    Deliver(batch);
    batch.clear();
    if (!abandoned.empty()) EndAbandoned(abandoned);
  }
}

void OutputThread::EndAbandoned(const std::vector<OutputStream*>& streams) {
  absl::Status why;
  {
    std::lock_guard lock(mutex_);
    why = abandonment_;
  }
  OutputCounts counts;
  for (OutputStream* stream : streams) stream->End(why, &counts);
  board_->Add(counts);
  for (OutputStream* stream : streams) {
    stream->Done(why, Usage());
    queue_->Close();
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
