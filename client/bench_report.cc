#include "client/bench_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

nlohmann::json LatencyJson(const LatencySummary& latency) {
  return {{"count", latency.count},
          {"mean_seconds", latency.mean_seconds},
          {"p50_seconds", latency.p50_seconds},
          {"p90_seconds", latency.p90_seconds},
          {"p95_seconds", latency.p95_seconds},
          {"p99_seconds", latency.p99_seconds},
          {"max_seconds", latency.max_seconds}};
}

std::string LatencyLine(const char* name, const LatencySummary& latency) {
  const auto ms = [](double seconds) { return absl::StrFormat("%10.2f", 1e3 * seconds); };
  return absl::StrCat(absl::StrFormat("%-22s", name), ms(latency.mean_seconds),
                      ms(latency.p50_seconds), ms(latency.p90_seconds), ms(latency.p95_seconds),
                      ms(latency.p99_seconds), ms(latency.max_seconds), "\n");
}

double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

}  // namespace

double Percentile(std::span<const double> ascending, double percent) {
  if (ascending.empty()) return 0;
  const double rank = std::ceil(percent / 100 * static_cast<double>(ascending.size()));
  const auto index = static_cast<size_t>(std::max(1.0, rank)) - 1;
  return ascending[std::min(index, ascending.size() - 1)];
}

LatencySummary Summarize(std::vector<double> seconds) {
  LatencySummary summary;
  if (seconds.empty()) return summary;
  std::sort(seconds.begin(), seconds.end());
  summary.count = static_cast<int64_t>(seconds.size());
  summary.mean_seconds =
      std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  summary.p50_seconds = Percentile(seconds, 50);
  summary.p90_seconds = Percentile(seconds, 90);
  summary.p95_seconds = Percentile(seconds, 95);
  summary.p99_seconds = Percentile(seconds, 99);
  summary.max_seconds = seconds.back();
  return summary;
}

BenchReport MakeBenchReport(std::span<const BenchRecord> records) {
  BenchReport report;
  std::vector<double> first_token;
  std::vector<double> inter_token;
  std::vector<double> end_to_end;
  for (const BenchRecord& record : records) {
    ++report.requests;
    report.duration_seconds = std::max(report.duration_seconds, record.end_seconds);
    if (!record.status.ok()) {
      ++report.failed[absl::StatusCodeToString(record.status.code())];
      continue;
    }
    ++report.succeeded;
    report.prompt_tokens += record.usage.prompt_tokens();
    report.completion_tokens += record.usage.completion_tokens();
    report.expert_hits += record.usage.experts().hits();
    report.expert_misses += record.usage.experts().misses();
    report.bytes_paged += record.usage.experts().bytes_paged();
    report.stall_seconds += record.usage.experts().stall_seconds();
    end_to_end.push_back(record.end_seconds - record.arrival_seconds);
    const std::vector<double>& times = record.token_seconds;
    if (!times.empty()) first_token.push_back(times.front() - record.arrival_seconds);
    for (size_t i = 1; i < times.size(); ++i) inter_token.push_back(times[i] - times[i - 1]);
  }
  report.time_to_first_token = Summarize(std::move(first_token));
  report.inter_token = Summarize(std::move(inter_token));
  report.end_to_end = Summarize(std::move(end_to_end));
  return report;
}

nlohmann::json BenchReport::ToJson() const {
  return {{"requests", requests},
          {"succeeded", succeeded},
          {"failed", failed},
          {"duration_seconds", duration_seconds},
          {"requests_per_second", PerSecond(succeeded, duration_seconds)},
          {"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"prompt_tokens_per_second", PerSecond(prompt_tokens, duration_seconds)},
          {"completion_tokens_per_second", PerSecond(completion_tokens, duration_seconds)},
          {"time_to_first_token", LatencyJson(time_to_first_token)},
          {"inter_token", LatencyJson(inter_token)},
          {"end_to_end", LatencyJson(end_to_end)},
          {"experts",
           {{"hits", expert_hits},
            {"misses", expert_misses},
            {"bytes_paged", bytes_paged},
            {"stall_seconds", stall_seconds}}}};
}

std::string BenchReport::ToText() const {
  std::string text = absl::StrFormat(
      "%d of %d requests in %.2f s: %.2f requests/s, %.1f tokens/s generated, %.1f tokens/s of "
      "prompts\n",
      succeeded, requests, duration_seconds, PerSecond(succeeded, duration_seconds),
      PerSecond(completion_tokens, duration_seconds), PerSecond(prompt_tokens, duration_seconds));
  for (const auto& [name, count] : failed)
    absl::StrAppend(&text, "failed: ", count, " ", name, "\n");
  absl::StrAppend(&text, "ms                          mean       p50       p90       p95       p99",
                  "       max\n", LatencyLine("time to first token", time_to_first_token),
                  LatencyLine("between tokens", inter_token),
                  LatencyLine("end to end", end_to_end));
  absl::StrAppend(&text, "experts: ", Percent(expert_hits, expert_hits + expert_misses), " hits, ",
                  Bytes(bytes_paged), " paged, ", absl::StrFormat("%.2f", stall_seconds),
                  " s stalled\n");
  return text;
}

}  // namespace moed::client
