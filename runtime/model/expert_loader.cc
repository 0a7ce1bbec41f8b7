#include "runtime/model/expert_loader.h"

#include <algorithm>
#include <utility>

namespace moed::model {
namespace {

// A smaller share is not worth a thread's waking.
constexpr size_t kLeastShareBytes = 512 << 10;

}  // namespace

ExpertLoader::ExpertLoader(const ExpertSource& source, int num_threads) : source_(source) {
  threads_.reserve(num_threads);
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { RunThread(); });
}

ExpertLoader::~ExpertLoader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  job_queued_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ExpertLoader::Start(cache::ExpertKey key, int32_t slot, std::span<std::byte> blob,
                         uint64_t after, Reread reread) {
  ++outstanding_;
  auto job = std::make_shared<Job>();
  job->key = key;
  job->slot = slot;
  job->blob = blob;
  job->after = after;
  job->reread = reread;
  job->shares = static_cast<int>(
      std::clamp<size_t>(blob.size() / kLeastShareBytes, 1, std::max<size_t>(threads_.size(), 1)));
  const bool cut = job->shares > 1;
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  if (cut) {
    job_queued_.notify_all();
  } else {
    job_queued_.notify_one();
  }
}

void ExpertLoader::Poll(std::vector<Completion>* completions) {
  completions->clear();
  if (outstanding_ == 0) return;
  const std::lock_guard lock(mutex_);
  TakeCompletions(completions);
}

void ExpertLoader::Wait(std::vector<Completion>* completions) {
  completions->clear();
  std::unique_lock lock(mutex_);
  job_done_.wait(lock, [this] { return !done_.empty(); });
  TakeCompletions(completions);
}

void ExpertLoader::TakeCompletions(std::vector<Completion>* completions) {
  completions->swap(done_);
  outstanding_ -= static_cast<int64_t>(completions->size());
}

void ExpertLoader::RunThread() {
  std::unique_lock lock(mutex_);
  while (true) {
    job_queued_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    ReadShare share;
    const std::shared_ptr<Job> job = TakeShare(&share);
    lock.unlock();
    const absl::Status status = source_.Read(job->key, share, job->blob);
    lock.lock();
    EndShare(*job, status);
  }
}

std::shared_ptr<ExpertLoader::Job> ExpertLoader::TakeShare(ReadShare* share) {
  std::shared_ptr<Job> job = queue_.front();
  *share = {
      .index = job->begun++, .count = job->shares, .after = job->after, .reread = job->reread};
  if (job->begun == job->shares) queue_.pop_front();
  return job;
}

void ExpertLoader::EndShare(Job& job, const absl::Status& status) {
  job.status.Update(status);
  if (++job.ended < job.shares) return;
  done_.push_back({job.key, job.slot, std::move(job.status)});
  job_done_.notify_one();
}

}  // namespace moed::model
