#include "runtime/model/for_each_expert.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/host_memory.h"

namespace moed::model {

std::vector<cache::ExpertKey> AllExperts(const ModelConfig& config) {
  std::vector<cache::ExpertKey> keys;
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (!config.layers[layer].is_moe) continue;
    for (int expert = 0; expert < config.router.num_experts; ++expert) {
      keys.push_back({layer, expert});
    }
  }
  return keys;
}

int ExpertThreads(int wanted, size_t bytes_each, size_t most_bytes) {
  const int threads = wanted > 0 ? wanted : backend::AvailableCpus();
  const auto fit = static_cast<int>(std::max<size_t>(most_bytes / bytes_each, 1));
  return std::min(threads, fit);
}

absl::Status ForEachExpert(std::span<const cache::ExpertKey> keys, int threads,
                           absl::FunctionRef<absl::Status(cache::ExpertKey key)> visit) {
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  absl::Status first_error;  // guarded by mutex
  const auto run = [&] {
    for (size_t i = next++; i < keys.size(); i = next++) {
      absl::Status status = visit(keys[i]);
      if (status.ok()) continue;
      const std::lock_guard lock(mutex);
      first_error.Update(std::move(status));
      next = keys.size();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(threads);
  for (int i = 0; i < threads; ++i) workers.emplace_back(run);
  for (std::thread& worker : workers) worker.join();
  return first_error;
}

absl::StatusOr<std::span<std::byte>> ExpertScratch(ScratchPurpose purpose, size_t bytes) {
  thread_local std::array<backend::Buffer, kNumScratchPurposes> buffers;
  backend::Buffer& buffer = buffers[static_cast<size_t>(purpose)];
  if (buffer.bytes() < bytes) {
    buffer = backend::Buffer();
    absl::StatusOr<backend::Buffer> larger = backend::AllocateHostMemory(bytes, "an expert");
    if (!larger.ok()) return larger.status();
    buffer = *std::move(larger);
  }
  return std::span(buffer.data(), bytes);
}

}  // namespace moed::model
