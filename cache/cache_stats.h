// What the cache did, as numbers: copied out by the engine thread after a step and published from
// there. Counters (_total) only grow until they are reset by name.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace moed::cache {

// By which way the bytes of a missed expert came (disk), or were used without coming (link: a
// kernel read them from host memory; cpu: the host computed with them).
enum class BytePath : uint8_t { kDisk = 0, kLink = 1, kCpu = 2 };
inline constexpr int kNumBytePaths = 3;

struct LayerStats {
  // Distinct (step, expert) demands: hits found their expert resident, misses did not.
  int64_t hits_total = 0;
  int64_t misses_total = 0;
  int64_t evictions_total = 0;
  int64_t admissions_total = 0;          // misses that became resident, and prefetches
  int64_t refused_admissions_total = 0;  // misses that the policy found colder than every victim
  int64_t tokens_total = 0;              // (token, expert) pairs routed
  std::array<int64_t, kNumBytePaths> bytes_total = {};  // by BytePath, as reported by the caller
  double stall_seconds_total = 0;                       // as reported by the caller
  int32_t resident = 0;                                 // experts in slots now
  int32_t floor = 0;                                    // slots that no other layer may take
};

struct CacheStats {
  std::string policy;
  int32_t num_slots = 0;  // the budget
  int64_t steps_total = 0;
  std::vector<LayerStats> layers;  // [layers]; all zero for a layer without a router
};

// Per expert, [layers][experts]; larger, so copied only when someone asks.
struct ExpertStats {
  std::vector<std::vector<int64_t>> tokens_total;
  std::vector<std::vector<uint8_t>> resident;  // 0 or 1
};

}  // namespace moed::cache
