#include "tests/runtime/model/reference_row_sampler.h"

#include <algorithm>
#include <cmath>

namespace moed::testing {
namespace {

using backend::LogitAdjustment;
using backend::RowSampling;
using backend::SampledRow;

// Ids, the most probable first.
std::vector<int> Ranked(const std::vector<double>& scores) {
  std::vector<int> ids(scores.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(i);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  return ids;
}

bool IsValid(const std::vector<double>& logits) {
  const auto is_bad = [](double logit) { return std::isnan(logit) || logit == HUGE_VAL; };
  return std::none_of(logits.begin(), logits.end(), is_bad) &&
         *std::max_element(logits.begin(), logits.end()) > -HUGE_VAL;
}

double LogSum(const std::vector<double>& logits) {
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit);
  return std::log(sum);
}

void Adjust(const RowSampling& row, std::span<const LogitAdjustment> adjustments,
            std::vector<double>* logits) {
  size_t next = row.first_adjustment;
  for (int i = 0; i < row.num_penalties; ++i, ++next) {
    double& logit = (*logits)[adjustments[next].token];
    logit = logit < 0 ? logit * row.repetition_penalty : logit / row.repetition_penalty;
    logit -= adjustments[next].value;
  }
  for (int i = 0; i < row.num_biases; ++i, ++next) {
    (*logits)[adjustments[next].token] += adjustments[next].value;
  }
  for (int i = 0; i < row.num_forbidden; ++i, ++next) {
    (*logits)[adjustments[next].token] = -HUGE_VAL;
  }
}

int Choose(const RowSampling& row, const std::vector<double>& logits) {
  std::vector<int> order = Ranked(logits);
  if (row.inverse_temperature == 0) return order.front();
  const bool has_top_k = row.top_k > 0 && static_cast<size_t>(row.top_k) < order.size();
  if (has_top_k) order.resize(row.top_k);
  const auto weight = [&](int id) {
    return std::exp((logits[id] - logits[order.front()]) * row.inverse_temperature);
  };
  double total = 0;
  for (int id : order) total += weight(id);
  size_t kept = 0;
  double sum = 0;
  while (kept < order.size() && weight(order[kept]) >= row.min_p) {
    sum += weight(order[kept++]);
    if (row.top_p < 1 && sum >= row.top_p * total) break;
  }
  order.resize(kept);
  // Tokens follow one another by rank if there is a top-k, else by id.
  const int highest = order.front();
  if (!has_top_k) std::sort(order.begin(), order.end());
  double beyond = row.draw * sum;
  for (int id : order) {
    beyond -= std::exp((logits[id] - logits[highest]) * row.inverse_temperature);
    if (beyond < 0) return id;
  }
  return order.back();
}

SampledRow SampleRow(const RowSampling& row, std::span<const LogitAdjustment> adjustments,
                     std::vector<double> logits) {
  if (!IsValid(logits)) return {.invalid = 1};
  const std::vector<double> unadjusted = logits;
  SampledRow result = {.token = row.token};
  if (row.token < 0) {
    Adjust(row, adjustments, &logits);
    if (!IsValid(logits)) return {.invalid = 1};
    result.token = Choose(row, logits);
  }
  if (row.logprobs < 0) return result;
  const double log_sum = LogSum(unadjusted);
  result.logprob = static_cast<float>(unadjusted[result.token] - log_sum);
  const std::vector<int> order = Ranked(unadjusted);
  for (size_t i = 0; i < std::min<size_t>(row.logprobs, order.size()); ++i) {
    result.top_tokens[i] = order[i];
    result.top_logprobs[i] = static_cast<float>(unadjusted[order[i]] - log_sum);
  }
  return result;
}

}  // namespace

void ReferenceRowSampler::Sample(const backend::Tensor& logits, std::span<const RowSampling> rows,
                                 std::span<const LogitAdjustment> adjustments) {
  results_.clear();
  for (const RowSampling& row : rows) {
    const float* first = logits.As<float>() + size_t(row.row) * options_.vocab_size;
    results_.push_back(SampleRow(row, adjustments, {first, first + options_.vocab_size}));
  }
}

}  // namespace moed::testing
