#include "runtime/backend/cpu/cold_forecast.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "runtime/backend/cold_division.h"
#include "runtime/backend/cpu/few_queries.h"

namespace moed::backend {
namespace {

// Experts that a thread scores at once.
constexpr int kScoredAtOnce = 16;
static_assert(ColdForecast::kMostRows <= kFewQueries);

// As few_queries.h has it: the values at even places, then those at odd ones.
void SplitRow(const BFloat16* row, int64_t values, float* split) {
  for (int64_t i = 0; i < values / 2; ++i) {
    uint32_t word;
    std::memcpy(&word, row + 2 * i, sizeof(word));
    split[i] = std::bit_cast<float>(word << 16);
    split[values / 2 + i] = std::bit_cast<float>(word & 0xffff0000u);
  }
}

float RankValue(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

}  // namespace

ColdForecast::ColdForecast(std::shared_ptr<const NextRouters> routers,
                           std::span<const int> experts_per_layer, int top_k, int64_t hidden)
    : routers_(FewQueriesFit(hidden) ? std::move(routers) : nullptr),
      experts_per_layer_(experts_per_layer.begin(), experts_per_layer.end()),
      top_k_(top_k),
      hidden_(hidden) {
  int total = 0;
  for (const int experts : experts_per_layer_) {
    first_expert_.push_back(total);
    total += experts;
    most_experts_ = std::max<int64_t>(most_experts_, experts);
  }
  in_vram_ = std::make_unique<std::atomic<uint8_t>[]>(total);
  logits_.resize(kMostRows * most_experts_);
}

void ColdForecast::Follow(std::span<const ExpertEdit> edits) {
  for (const ExpertEdit& edit : edits) {
    if (edit.kind == ExpertEditKind::kInsert) SetInVram(edit.layer, edit.expert, true);
    if (edit.kind == ExpertEditKind::kEvict) SetInVram(edit.layer, edit.expert, false);
    if (edit.kind != ExpertEditKind::kOffer && edit.kind != ExpertEditKind::kEvict) continue;
    const auto slot = static_cast<size_t>(edit.slot);
    if (slot >= formers_.size()) formers_.resize(slot + 1, -1);
    formers_[slot] = edit.kind == ExpertEditKind::kOffer ? edit.expert : -1;
  }
}

void ColdForecast::FollowFill(int layer, int expert, int32_t slot) {
  SetInVram(layer, expert, true);
  const int32_t former = std::exchange(formers_[slot], -1);
  if (former >= 0) SetInVram(layer, former, false);
}

void ColdForecast::SetInVram(int layer, int expert, bool in_vram) {
  in_vram_[first_expert_[layer] + expert].store(in_vram ? 1 : 0, std::memory_order_relaxed);
}

bool ColdForecast::Begin(const ColdMailbox& mailbox) {
  rows_ = mailbox.request->rows;
  x_ = mailbox.x;
  row_values_ = mailbox.row_values;
  if (routers_ == nullptr || rows_ > kMostRows) return false;
  router_ = &(*routers_)[mailbox.request->layer];
  return router_->layer >= 0;
}

void ColdForecast::Score(int first, int count, std::vector<float>* x) {
  x->resize(rows_ * hidden_);
  for (int row = 0; row < rows_; ++row) {
    SplitRow(x_ + row * row_values_, hidden_, x->data() + row * hidden_);
  }
  for (const int end = first + count; first < end; first += kScoredAtOnce) {
    std::array<const BFloat16*, kScoredAtOnce> weights;
    const int at_once = std::min(end - first, kScoredAtOnce);
    for (int i = 0; i < at_once; ++i) weights[i] = RouterRow(first + i);
    ScoreFewQueries(x->data(), rows_, {weights.data(), static_cast<size_t>(at_once)}, hidden_,
                    logits_.data() + first, most_experts_);
  }
}

const std::byte* ColdForecast::WeightsOf(int expert) const {
  return reinterpret_cast<const std::byte*>(RouterRow(expert));
}

void ColdForecast::Choose(std::vector<int32_t>* order, std::vector<int32_t>* experts) const {
  experts->clear();
  order->resize(num_experts());
  const auto chosen = order->begin() + std::min(top_k_, num_experts());
  for (int row = 0; row < rows_; ++row) {
    const float* const logits = logits_.data() + row * most_experts_;
    std::iota(order->begin(), order->end(), 0);
    std::partial_sort(order->begin(), chosen, order->end(), [&](int32_t a, int32_t b) {
      return RankValue(logits[a]) > RankValue(logits[b]);
    });
    for (auto expert = order->begin(); expert != chosen; ++expert) {
      if (!InVram(*expert)) experts->push_back(*expert);
    }
  }
  if (rows_ == 1) return;
  std::vector<int32_t>& tokens = *order;  // of each expert
  tokens.assign(num_experts(), 0);
  for (const int32_t expert : *experts) ++tokens[expert];
  std::sort(experts->begin(), experts->end(),
            [&](int32_t a, int32_t b) { return ComesBefore(tokens[b], b, tokens[a], a); });
  experts->erase(std::unique(experts->begin(), experts->end()), experts->end());
}

}  // namespace moed::backend
