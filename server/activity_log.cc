#include "server/activity_log.h"

#include <spdlog/spdlog.h>

#include "server/served_model.h"

namespace moed::server {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(10);

}  // namespace

void ActivityLog::Update(const engine::EngineSnapshot& snapshot, absl::Time now) {
  if (now - last_time_ < kInterval) return;
  const bool first = last_time_ == absl::InfinitePast();
  if (!first && snapshot.steps_total != last_.steps_total) {
    const double seconds = absl::ToDoubleSeconds(now - last_time_);
    const auto rate = [seconds](int64_t after, int64_t before) {
      return static_cast<double>(after - before) / seconds;
    };
    spdlog::info(
        "running {} sequences, {} waiting; prompt {:.1f} tokens/s, generation {:.1f} "
        "tokens/s; KV cache {:.0f} %",
        snapshot.running, snapshot.waiting,
        rate(snapshot.prompt_tokens_total, last_.prompt_tokens_total),
        rate(snapshot.generation_tokens_total, last_.generation_tokens_total),
        100 * KvUsage(snapshot));
  }
  last_ = snapshot;
  last_time_ = now;
}

}  // namespace moed::server
