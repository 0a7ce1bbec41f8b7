// The device-driven side of the cache (CUDA decode): decides between steps what the device may fill
// and must forget, and follows what the device did by replaying its traces. Owned by ExpertCache,
// engine thread only.
//
// The mirror of the device's table changes only by replay. An admission is permission to fill at
// the next read. The victim's slot is offered while its expert still lies in it, and serves hits
// until the device fills it: for the host it is not resident meanwhile, so nobody pins it. Used
// again first, or no longer wanted by others, it is withdrawn and its old expert's again. A slot
// that is withdrawn, or evicted in favour of another layer, may be filled or read by steps already
// queued, so what follows waits until a trace shows the update in use. Only about as many slots are
// offered ahead as recent steps filled. Nothing here waits for the device.
//
//   after each trace arrives:   device.Replay(trace)
//   then, while the next runs:  device.Publish(&update), and send update.edits behind it
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "cache/admission.h"
#include "cache/cache_state.h"
#include "cache/device_table.h"

namespace moed::cache {

class DeviceResidency {
 public:
  DeviceResidency(CacheState* state, AdmissionPlanner* planner);

  // Follows one step: statistics, counters, fills, and slots that no step can read any more.
  // INTERNAL if the trace contradicts the protocol (a slot read or filled that the device was not
  // given): memory can no longer be trusted, the device must be stopped.
  absl::Status Replay(const DeviceTrace& trace);

  // Decides on evictions, permissions and offers from what was replayed since the last call.
  // Returns false, leaving the number as it was, if the device's table needs no edit.
  bool Publish(TableUpdate* update);

  // The host filled a slot (warm start, prefill): the next update inserts it.
  void HostFilled(int32_t slot) { inserts_.push_back({slot, state_.slots.slot(slot).generation}); }

  // Something is to be inserted.
  bool host_fills_wait() const { return !inserts_.empty(); }

  uint64_t published_number() const { return number_; }
  // Slots given to the device that it has not filled yet.
  int32_t offered_slots() const;
  // Slots that steps in flight may still read.
  int32_t retiring_slots() const { return static_cast<int32_t>(leaving_.size()); }

 private:
  struct LayerPlan {
    std::vector<int> missed;       // cold experts used since the last Publish, step by step
    std::vector<int> allowed;      // experts with permission to fill
    std::vector<int32_t> offered;  // slots that the device may fill and has not
    int32_t coming = 0;            // slots retiring in favour of this layer
    int32_t filled = 0;            // slots filled since the last Publish
    int32_t most_offered = 4;      // beyond so many no resident's slot is
  };
  // A slot on its way back: evicted, or withdrawn from the device's offer, by update `number`.
  struct Leaving {
    int32_t slot;
    uint32_t generation;
    uint64_t number;
    int layer;  // in whose favour; -1: nobody's
  };
  struct HostFill {
    int32_t slot;
    uint32_t generation;
  };
  // Who lies in an offered slot until it is filled.
  struct Former {
    int expert = -1;  // of the slot's layer; negative: nobody
    uint32_t generation = 0;
    uint64_t evicted_by = 0;  // the update; 0: none
  };

  absl::Status ReplayLayer(std::span<const DeviceUse> uses, uint64_t table_number);
  absl::Status ReplayFill(const DeviceUse& use);
  bool MayRead(const DeviceUse& use, uint64_t table_number) const;
  bool MayReadFormer(const DeviceUse& use, uint64_t table_number) const;
  void ReclaimUpTo(uint64_t table_number);
  void Reclaim(const Leaving& leaving);

  void InsertHostFills();
  void CutToBudget();
  void PlanLayer(int layer);
  void OfferVictims(int layer, std::span<const int32_t> victims);
  bool UsedLately(ExpertKey key) const;
  static void AdaptMostOffered(LayerPlan* plan);
  void OfferFreeSlots(int layer);
  void Allow(int layer, const std::vector<int>& wanted);
  void EvictFor(int layer, int32_t slot);
  void OfferHeld(int layer, int32_t slot);
  bool RestoreFormer(int32_t slot);
  void EvictFormer(int32_t slot);
  void EvictFormersOf(ExpertKey key);
  void WithdrawUsed(int layer);
  int32_t Withdraw(int layer);
  void Leave(int layer, int32_t slot);
  void AddLeaving(const Leaving& leaving);
  uint8_t& Flag(int layer, int expert);
  void Edit(TableEditKind kind, int layer, int expert, int32_t slot);

  CacheState& state_;
  AdmissionPlanner& planner_;
  uint64_t number_ = 0;         // of the last update that had edits
  uint64_t number_in_use_ = 0;  // of the last trace
  int num_replayed_ = 0;        // traces since the last Publish
  std::vector<TableEdit> edits_;
  std::vector<LayerPlan> layers_;  // [layers]
  std::deque<Leaving> leaving_;    // by rising number
  std::vector<Former> formers_;    // [slots]
  std::vector<HostFill> inserts_;
  std::vector<uint8_t> flags_;  // [all experts]
  // Of the layer being replayed or planned; kept for their memory.
  std::vector<ExpertLoad> loads_;
  std::vector<int> warm_;
  std::vector<int> candidates_;
  std::vector<int> wanted_;
};

}  // namespace moed::cache
