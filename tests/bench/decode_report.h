// The lines of the decode benchmark: what was measured beside the limit that memory sets and the
// VRAM that it took. One thread.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "cache/expert_cache.h"
#include "runtime/backend/device_experts.h"
#include "tests/bench/decode_model.h"
#include "tests/bench/memory_rates.h"

namespace moed {

// Steps of one batch at one residency.
struct DecodeRun {
  double residency = 0;
  int batch = 0;
  double seconds = 0;  // of the median step
  int steps = 0;       // between `before` and `after`
  cache::CacheStats before;
  cache::CacheStats after;
  backend::ColdNeurons neurons_before;
  backend::ColdNeurons neurons_after;
  backend::ColdRates cold_rates;
};

class DecodeReport {
 public:
  // How experts are stored and where cold ones are computed.
  struct Combination {
    std::string format;
    std::string cold_path;
  };

  void PrintDecode(const Combination& combination, const DecodeRun& run, const MemoryRates& rates,
                   const DecodeModel& model);
  void PrintPrefill(const Combination& combination, double residency, int tokens, double seconds,
                    const DecodeModel& model);

 private:
  // Seconds of what was measured first, by residency and batch.
  std::map<std::pair<double, int>, double> first_;
};

}  // namespace moed
