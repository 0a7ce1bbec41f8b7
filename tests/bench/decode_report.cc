#include "tests/bench/decode_report.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "runtime/model/model_size.h"

namespace moed {
namespace {

// Of one step, over all layers.
struct StepLimit {
  double hits = 0;
  double misses = 0;
  double seconds = 0;
};

StepLimit LimitOf(const DecodeRun& run, double cold_rate, const MemoryRates& rates,
                  const DecodeModel& model) {
  const model::ModelConfig& config = model.config();
  // Of the embedding a step reads next to nothing.
  const double embedding_bytes =
      2.0 * static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden);
  const double dense_bytes =
      static_cast<double>(model::ComputeModelSize(config).dense_bytes) - embedding_bytes;
  const auto expert_bytes = static_cast<double>(model.expert_bytes());
  const auto per_step = [&](int64_t after, int64_t before) {
    return static_cast<double>(after - before) / run.steps;
  };
  StepLimit limit = {.seconds = dense_bytes / rates.vram};
  for (size_t i = 0; i < run.after.layers.size(); ++i) {
    const cache::LayerStats& before = run.before.layers[i];
    const cache::LayerStats& after = run.after.layers[i];
    const double hot = per_step(after.hits_total, before.hits_total);
    const double cold = per_step(after.misses_total, before.misses_total);
    limit.seconds += std::max(hot * expert_bytes / rates.vram, cold * expert_bytes / cold_rate);
    limit.hits += hot;
    limit.misses += cold;
  }
  return limit;
}

// Of what the CPU computed, what it had fetched ahead.
double AheadShare(const DecodeRun& run) {
  const int64_t computed = run.neurons_after.computed - run.neurons_before.computed;
  const int64_t ahead = run.neurons_after.fetched_ahead - run.neurons_before.fetched_ahead;
  return computed > 0 ? static_cast<double>(ahead) / static_cast<double>(computed) : 0;
}

// Experts a step that came into slots.
double Fills(const DecodeRun& run) {
  int64_t fills = 0;
  for (size_t i = 0; i < run.after.layers.size(); ++i) {
    fills += run.after.layers[i].admissions_total - run.before.layers[i].admissions_total;
  }
  return static_cast<double>(fills) / run.steps;
}

// Of the bytes of cold experts.
double CpuShare(const DecodeRun& run) {
  double cpu = 0;
  double all = 1e-30;
  for (size_t i = 0; i < run.after.layers.size(); ++i) {
    for (const auto path : {cache::BytePath::kLink, cache::BytePath::kCpu}) {
      const auto p = static_cast<int>(path);
      const auto bytes = static_cast<double>(run.after.layers[i].bytes_total[p] -
                                             run.before.layers[i].bytes_total[p]);
      all += bytes;
      if (path == cache::BytePath::kCpu) cpu += bytes;
    }
  }
  return cpu / all;
}

std::string VramOf(const DecodeModel& model) {
  const DecodeVram vram = model.Vram();
  const auto gigabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  return absl::StrFormat("VRAM GB: weights %.2f  slots %.2f  KV %.2f  in use %.2f",
                         gigabytes(vram.weights), gigabytes(vram.slots), gigabytes(vram.kv_cache),
                         gigabytes(vram.in_use));
}

}  // namespace

void DecodeReport::PrintDecode(const Combination& combination, const DecodeRun& run,
                               const MemoryRates& rates, const DecodeModel& model) {
  const double cold_rate = combination.cold_path == "link" ? rates.link : rates.both;
  const StepLimit limit = LimitOf(run, cold_rate, rates, model);
  const double first = first_.try_emplace({run.residency, run.batch}, run.seconds).first->second;
  std::printf(
      "%s %-6s  batch %2d  resident %3.0f %%  hit rate %3.0f %%  fills %4.1f  by the CPU %3.0f %%, "
      "ahead %2.0f %%, link %.1f and CPU %.1f GB/s  step %7.3f ms  limit %7.3f ms  ratio %.2f  "
      "%7.1f tokens/s  %.2f of the "
      "first  %s\n",
      combination.format.c_str(), combination.cold_path.c_str(), run.batch, 100 * run.residency,
      100 * limit.hits / (limit.hits + limit.misses), Fills(run), 100 * CpuShare(run),
      100 * AheadShare(run), 1e-9 * run.cold_rates.link, 1e-9 * run.cold_rates.cpu,
      1e3 * run.seconds, 1e3 * limit.seconds, run.seconds / limit.seconds, run.batch / run.seconds,
      run.seconds / first, VramOf(model).c_str());
  std::fflush(stdout);
}

void DecodeReport::PrintPrefill(const Combination& combination, double residency, int tokens,
                                double seconds, const DecodeModel& model) {
  std::printf("%s prefill %d  resident %3.0f %%  %7.1f ms  %7.0f tokens/s  %s\n",
              combination.format.c_str(), tokens, 100 * residency, 1e3 * seconds, tokens / seconds,
              VramOf(model).c_str());
  std::fflush(stdout);
}

}  // namespace moed
