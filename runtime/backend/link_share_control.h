// What part of the cold experts' work goes over the link, from the times that link and CPU needed
// for theirs in recent steps: both shall end together. Rates differ between machines of one kind
// and change with load, so nothing is assumed but the first guess. A value; engine thread.
#pragma once

#include <cstdint>

#include "runtime/backend/cold_division.h"
#include "runtime/backend/device_experts.h"

namespace moed::backend {

// What one step measured, summed over the layers that both worked in. Costs as in cold_division.h.
struct ColdStepTimes {
  int64_t link_cost = 0;
  double link_seconds = 0;
  int64_t cpu_cost = 0;
  double cpu_seconds = 0;
};

class LinkShareControl {
 public:
  // In 65536ths. Never all or nothing, so that both rates go on being measured.
  uint32_t share() const { return share_; }

  // A side that did nothing keeps its rate.
  void Observe(const ColdStepTimes& times);

  // Of experts of `format`.
  ColdRates rates(const ExpertFormat& format) const;

 private:
  // A PCIe 5 link beside 15 threads.
  uint32_t share_ = kAllOverLink / 3;
  // Cost per second; 0: not measured yet.
  double link_rate_ = 0;
  double cpu_rate_ = 0;
};

}  // namespace moed::backend
