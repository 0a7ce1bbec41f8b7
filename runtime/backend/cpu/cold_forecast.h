// A guess at the cold experts of the next layer, from what this layer's experts take and the next
// layer's router. On the demo model it names 0.4 to 0.8 of the experts that are then chosen, more
// in deeper layers; a wrong guess costs nothing but the fetch that follows it (cold_fetch.h).
//
// Owned by ColdWorkers. Follow and FollowFill are the engine thread's; Begin is the watching
// thread's, before a request is answered; Score and Choose any worker's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/device_experts.h"
#include "runtime/backend/next_routers.h"

namespace moed::backend {

class ColdForecast {
 public:
  // More rows take many experts, of which the caches hold few: with eight, guessing cost what it
  // gained.
  static constexpr int kMostRows = 2;

  // `routers` null: there is never a guess.
  ColdForecast(std::shared_ptr<const NextRouters> routers, std::span<const int> experts_per_layer,
               int top_k, int64_t hidden);

  // Which experts lie in VRAM, so that none of them is guessed: by the table's edits, and by what
  // the device filled.
  void Follow(std::span<const ExpertEdit> edits);
  void FollowFill(int layer, int expert, int32_t slot);

  // From a request, whose rows must stay until all is scored. False: nothing can be guessed.
  bool Begin(const ColdMailbox& mailbox);
  // The layer that is guessed, and its experts.
  int layer() const { return router_->layer; }
  int num_experts() const { return experts_per_layer_[layer()]; }
  // The next router's logits of experts [first, first + count) for all rows. `x`: scratch.
  void Score(int first, int count, std::vector<float>* x);
  // What Score reads.
  const std::byte* WeightsOf(int expert) const;
  // Once all are scored: the cold ones of the experts that the rows would choose, in the order in
  // which the CPU has them before the link does (cold_division.h; of a single token the highest in
  // rank first). `order`: scratch.
  void Choose(std::vector<int32_t>* order, std::vector<int32_t>* experts) const;

 private:
  void SetInVram(int layer, int expert, bool in_vram);
  const BFloat16* RouterRow(int expert) const { return router_->weights.data() + expert * hidden_; }
  bool InVram(int expert) const {  // of the layer that is guessed
    return in_vram_[first_expert_[layer()] + expert].load(std::memory_order_relaxed) != 0;
  }

  const std::shared_ptr<const NextRouters> routers_;
  const std::vector<int> experts_per_layer_;
  const int top_k_;
  const int64_t hidden_;
  std::vector<int> first_expert_;  // [layers]
  std::unique_ptr<std::atomic<uint8_t>[]> in_vram_;
  std::vector<int32_t> formers_;  // of each slot so far: who lay in it when it was offered, or -1
  const NextRouter* router_ = nullptr;
  int rows_ = 0;
  const BFloat16* x_ = nullptr;  // [rows, row_values_]
  int64_t row_values_ = 0;
  int64_t most_experts_ = 0;
  std::vector<float> logits_;  // [rows, most experts]
};

}  // namespace moed::backend
