#include "runtime/model/expert_loader.h"

#include <utility>

namespace moed::model {

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

void ExpertLoader::Start(cache::ExpertKey key, int32_t slot, std::span<std::byte> blob) {
  ++outstanding_;
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back({key, slot, blob});
  }
  job_queued_.notify_one();
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
    const Job job = queue_.front();
    queue_.pop_front();
    lock.unlock();
    absl::Status status = source_.Read(job.key, job.blob);
    lock.lock();
    done_.push_back({job.slot, std::move(status)});
    job_done_.notify_one();
  }
}

}  // namespace moed::model
