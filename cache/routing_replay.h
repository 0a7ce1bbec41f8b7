// Runs recorded routing through a real cache, with fills that take no time: the core of simulations
// of policies and budgets.
#pragma once

#include <span>

#include "cache/expert_cache.h"
#include "cache/optimum.h"
#include "cache/routing_trace.h"

namespace moed::cache {

// One step of a host-driven cache: statistics, demand in as many waves as it takes, fills.
// The counters of `cache` tell what happened.
void ReplayStep(const RoutingTrace& trace, ExpertCache& cache);

// All steps in order; hits and misses of these alone.
HitCount Replay(std::span<const RoutingTrace> traces, ExpertCache& cache);

}  // namespace moed::cache
