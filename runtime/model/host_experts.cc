#include "runtime/model/host_experts.h"

#include <numeric>
#include <utility>

#include "runtime/model/expert_loader.h"

namespace moed::model {

absl::StatusOr<std::unique_ptr<HostExperts>> HostExperts::Load(
    const ExpertSource& source, std::span<const int> experts_per_layer, int io_threads,
    const LoadProgress& progress, backend::Backend& backend) {
  const size_t blob_bytes = source.format().blob_bytes();
  const size_t total_experts =
      std::accumulate(experts_per_layer.begin(), experts_per_layer.end(), size_t{0});
  auto buffer = backend.Allocate(total_experts * blob_bytes, backend::MemoryKind::kHost,
                                 "the experts in host memory");
  if (!buffer.ok()) return buffer.status();
  std::unique_ptr<HostExperts> experts(
      new HostExperts(source.format(), experts_per_layer, *std::move(buffer), backend));

  ExpertLoader loader(source, io_threads);
  for (int layer = 0; layer < static_cast<int>(experts_per_layer.size()); ++layer) {
    for (int expert = 0; expert < experts_per_layer[layer]; ++expert) {
      loader.Start({layer, expert}, /*slot=*/0, experts->Blob({layer, expert}), /*after=*/0,
                   Reread::kNever);
    }
  }
  std::vector<ExpertLoader::Completion> completions;
  while (loader.outstanding() > 0) {
    loader.Wait(&completions);
    for (const ExpertLoader::Completion& completion : completions) {
      if (!completion.status.ok()) return completion.status;
    }
    const auto left = static_cast<int64_t>(loader.outstanding() * blob_bytes);
    const auto total = static_cast<int64_t>(total_experts * blob_bytes);
    if (progress) progress(total - left, total);
  }
  return experts;
}

HostExperts::HostExperts(const backend::ExpertFormat& format,
                         std::span<const int> experts_per_layer, backend::Buffer buffer,
                         backend::Backend& backend)
    : format_(format), buffer_(std::move(buffer)), backend_(backend) {
  size_t first = 0;
  for (int experts : experts_per_layer) {
    first_expert_.push_back(first);
    first += experts;
  }
}

std::span<std::byte> HostExperts::Blob(cache::ExpertKey key) const {
  const size_t blob_bytes = format_.blob_bytes();
  return {buffer_.data() + (first_expert_[key.layer] + key.expert) * blob_bytes, blob_bytes};
}

absl::Status HostExperts::Read(cache::ExpertKey key, ReadShare share,
                               std::span<std::byte> blob) const {
  if (share.index != 0) return absl::OkStatus();
  return backend_.Upload(Blob(key), blob.data(), share.after);
}

}  // namespace moed::model
