#include "runtime/model/expert_store.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/time/clock.h"
#include "runtime/model/uploaded_experts.h"

namespace moed::model {
namespace {

// Reads that Warm keeps in flight: enough for every thread, few enough to stop at the deadline.
constexpr size_t kWarmReads = 64;
// From host memory one copy runs and the next ones wait on the device; more threads do not help.
constexpr int kUploadThreads = 4;

std::vector<int> ExpertsPerLayer(const ModelConfig& config) {
  std::vector<int> experts;
  for (const LayerConfig& layer : config.layers) {
    experts.push_back(layer.is_moe ? config.router.num_experts : 0);
  }
  return experts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Create(const ModelConfig& config,
                                                                 const ExpertStoreOptions& options,
                                                                 const ExpertSource& source,
                                                                 backend::Backend& backend) {
  const bool on_device = options.device_tokens > 0;
  auto cache = cache::ExpertCache::Create(
      {.experts_per_layer = ExpertsPerLayer(config),
       .top_k = config.router.top_k,
       .num_slots = options.num_slots,
       .max_slots = options.max_slots,
       .policy = options.policy,
       .driver = on_device ? cache::CacheDriver::kDevice : cache::CacheDriver::kHost});
  if (!cache.ok()) return cache.status();
  const size_t blob_bytes = source.format().blob_bytes();
  size_t arena_bytes = (*cache)->max_slots() * blob_bytes;
  if (on_device) arena_bytes += StagingBytes(static_cast<int64_t>(blob_bytes));
  const bool in_device_memory = on_device || options.slots_on_device;
  auto arena = backend.Allocate(
      arena_bytes, in_device_memory ? backend::MemoryKind::kDevice : backend::MemoryKind::kHost,
      "expert slots");
  if (!arena.ok()) return arena.status();
  if (!on_device) {
    std::unique_ptr<const ExpertSource> uploaded;
    if (in_device_memory) uploaded = std::make_unique<UploadedExperts>(source, backend);
    std::unique_ptr<ExpertStore> store(
        new ExpertStore(in_device_memory ? *uploaded : source, *std::move(cache), *std::move(arena),
                        ExpertsPerLayer(config), options.io_threads, backend));
    store->uploaded_ = std::move(uploaded);
    return store;
  }
  auto host = HostExperts::Load(source, ExpertsPerLayer(config), options.io_threads,
                                options.progress, backend);
  if (!host.ok()) return host.status();
  std::unique_ptr<ExpertStore> store(
      new ExpertStore(**host, *std::move(cache), *std::move(arena), ExpertsPerLayer(config),
                      std::min(options.io_threads, kUploadThreads), backend));
  store->host_experts_ = *std::move(host);
  if (absl::Status status = store->CreateDevice(config, options, backend); !status.ok()) {
    return status;
  }
  return store;
}

absl::Status ExpertStore::CreateDevice(const ModelConfig& config, const ExpertStoreOptions& options,
                                       backend::Backend& backend) {
  staging_ = StagingSlots(cache_->max_slots(),
                          StagingSlots::Count(static_cast<int64_t>(format().blob_bytes())));
  auto device = backend.CreateDeviceExperts({.format = format(),
                                             .experts_per_layer = experts_per_layer_,
                                             .top_k = config.router.top_k,
                                             .max_tokens = options.device_tokens,
                                             .num_slots = cache_->max_slots(),
                                             .host_experts = host_experts_->data(),
                                             .slots = arena_.data(),
                                             .cold_path = options.cold_path,
                                             .cold_threads = options.cold_threads,
                                             .next_routers = options.next_routers});
  if (!device.ok()) return device.status();
  device_ = *std::move(device);
  return absl::OkStatus();
}

int64_t ExpertStore::StagingBytes(int64_t blob_bytes) {
  return StagingSlots::Count(blob_bytes) * blob_bytes;
}

ExpertStore::ExpertStore(const ExpertSource& source, std::unique_ptr<cache::ExpertCache> cache,
                         backend::Buffer arena, std::vector<int> experts_per_layer, int io_threads,
                         backend::Backend& backend)
    : source_(source),
      arena_(std::move(arena)),
      cache_(std::move(cache)),
      experts_per_layer_(std::move(experts_per_layer)),
      backend_(backend),
      loader_(source, io_threads) {}

absl::Status ExpertStore::Warm(const LoadProgress& progress, std::span<const cache::ExpertKey> hot,
                               absl::Time deadline) {
  const auto blob_bytes = static_cast<int64_t>(format().blob_bytes());
  const int64_t total = cache_->num_slots() * blob_bytes;
  const std::vector<cache::ExpertKey> order = WarmOrder(hot);
  const Reread reread = HoldsEveryExpert() ? Reread::kNever : Reread::kLikely;
  size_t next = 0;
  // Loaded grants keep their pins to the end, so that no policy evicts the first for the last.
  do {
    for (; next < order.size() && loading_.size() < kWarmReads; ++next) {
      StartPrefetch(order[next], reread);
    }
    if (loading_.empty()) break;
    loader_.Wait(&completions_);
    if (absl::Status status = Settle(); !status.ok()) {
      Abandon();
      return status;
    }
    if (progress) progress(static_cast<int64_t>(ready_.size()) * blob_bytes, total);
    if (absl::Now() > deadline) next = order.size();
  } while (true);
  ready_.clear();
  return absl::OkStatus();
}

std::vector<cache::ExpertKey> ExpertStore::WarmOrder(std::span<const cache::ExpertKey> hot) const {
  std::vector<cache::ExpertKey> order(hot.begin(), hot.end());
  const int most_experts = *std::max_element(experts_per_layer_.begin(), experts_per_layer_.end());
  for (int expert = 0; expert < most_experts; ++expert) {
    for (int layer = 0; layer < static_cast<int>(experts_per_layer_.size()); ++layer) {
      if (expert < experts_per_layer_[layer]) order.push_back({layer, expert});
    }
  }
  return order;
}

bool ExpertStore::HoldsEveryExpert() const {
  return cache_->num_slots() >=
         std::accumulate(experts_per_layer_.begin(), experts_per_layer_.end(), 0);
}

void ExpertStore::StartPrefetch(cache::ExpertKey key, Reread reread) {
  std::optional<cache::Grant> grant = cache_->Prefetch(key);
  if (!grant.has_value()) return;
  loader_.Start(key, grant->slot, Slot(grant->slot), /*after=*/0, reread);
  loading_.push_back(*std::move(grant));
}

absl::Status ExpertStore::ForEach(int layer, std::span<const int> experts,
                                  absl::FunctionRef<void(std::span<const Ready>)> compute,
                                  LayerTraffic* traffic) {
  traffic->Clear();
  cache_->Demand(layer, experts, &demand_);
  absl::Status status = TakeAhead(layer, traffic);
  // What was read ahead comes before the residents, so that its slots are soon idle.
  if (status.ok()) Compute(compute);
  TakeGrants(traffic);
  const int next_layer = LayerToReadAhead(layer, experts);
  while (status.ok() && (!ready_.empty() || !loading_.empty() || !demand_.deferred.empty())) {
    // Every read that can begin does, before anything is computed.
    Stage(layer, traffic);
    if (demand_.deferred.empty()) ReadAhead(next_layer);
    const bool idle = ready_.empty();
    Compute(compute);
    ABSL_RAW_CHECK(!idle || !loading_.empty(), "the expert cache granted nothing");
    status = TakeCompletions(/*wait=*/idle, traffic);
    if (!status.ok()) break;
    Compute(compute);
    if (demand_.deferred.empty()) continue;
    cache_->DemandDeferred(&demand_);
    TakeGrants(traffic);
  }
  if (status.ok()) {
    ReadAhead(next_layer);
  } else {
    Abandon();
  }
  if (traffic->stall_seconds > 0) cache_->CountStall(layer, traffic->stall_seconds);
  return status;
}

std::span<std::byte> ExpertStore::Slot(int32_t slot) const {
  const size_t blob_bytes = format().blob_bytes();
  return {arena_.data() + slot * blob_bytes, blob_bytes};
}

void ExpertStore::TakeGrants(LayerTraffic* traffic) {
  uint64_t after = 0;  // the slots may have held what is computed still
  for (cache::Grant& grant : demand_.grants) {
    if (grant.resident) {
      traffic->hits.push_back(grant.key.expert);
      ready_.push_back(std::move(grant));
      continue;
    }
    ABSL_RAW_CHECK(grant.to_fill, "nobody else fills slots on this driver");
    traffic->misses.push_back(grant.key.expert);
    if (after == 0) after = backend_.Issued();
    loader_.Start(grant.key, grant.slot, Slot(grant.slot), after);
    loading_.push_back(std::move(grant));
  }
}

void ExpertStore::Compute(absl::FunctionRef<void(std::span<const Ready>)> compute) {
  if (ready_.empty()) return;
  group_.clear();
  for (const cache::Grant& grant : ready_) {
#ifndef NDEBUG
    ABSL_RAW_CHECK(
        staging_.Owns(grant.slot) || cache_->Verify(grant.key, grant.slot, grant.generation).ok(),
        "a slot does not hold the expert that it was granted for");
#endif
    group_.push_back({grant.key.expert, Slot(grant.slot).data()});
  }
  compute(group_);
  LetReadyGo();
}

void ExpertStore::LetReadyGo() {
  uint64_t after = 0;
  for (const cache::Grant& grant : ready_) {
    if (!staging_.Owns(grant.slot)) continue;
    if (after == 0) after = backend_.Issued();
    staging_.GiveBack(grant.slot, after);
  }
  ready_.clear();
}

absl::Status ExpertStore::TakeCompletions(bool wait, LayerTraffic* traffic) {
  if (wait) {
    const absl::Time start = absl::Now();
    loader_.Wait(&completions_);
    traffic->stall_seconds += absl::ToDoubleSeconds(absl::Now() - start);
  } else {
    loader_.Poll(&completions_);
  }
  const auto blob_bytes = static_cast<int64_t>(format().blob_bytes());
  const cache::BytePath path = device_ == nullptr ? cache::BytePath::kDisk : cache::BytePath::kLink;
  for (const ExpertLoader::Completion& completion : completions_) {
    cache_->CountBytes(completion.key.layer, path, blob_bytes);
  }
  return Settle();
}

absl::Status ExpertStore::Settle() {
  absl::Status status;
  for (const ExpertLoader::Completion& completion : completions_) {
    if (!staging_.EndAhead(completion.slot, completion.status.ok())) SettleGrant(completion);
    status.Update(completion.status);
  }
  return status;
}

// Moves a grant from loading_ to ready_, or drops it if its read failed.
void ExpertStore::SettleGrant(const ExpertLoader::Completion& completion) {
  const auto grant = std::find_if(loading_.begin(), loading_.end(),
                                  [&](const cache::Grant& g) { return g.slot == completion.slot; });
  if (staging_.Owns(completion.slot)) {
    if (completion.status.ok()) {
      ready_.push_back(std::move(*grant));
    } else {
      staging_.GiveBack(completion.slot, /*after=*/0);
    }
  } else if (completion.status.ok()) {
    ABSL_RAW_CHECK(cache_->Filled(grant->slot, grant->generation), "a pinned slot was taken away");
    ready_.push_back(std::move(*grant));
  } else {
    cache_->FillFailed(grant->slot, grant->generation);
  }
  loading_.erase(grant);
}

// Lets everything go after a failed read. Slots are given back only once no thread writes them.
void ExpertStore::Abandon() {
  while (loader_.outstanding() > 0) {
    loader_.Wait(&completions_);
    Settle().IgnoreError();
  }
  LetReadyGo();
  demand_.deferred.clear();
}

}  // namespace moed::model
