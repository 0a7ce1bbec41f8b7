#include <cstdint>

#include "runtime/backend/cuda/prefill/experts_at_once.h"
#include "runtime/backend/cuda/prefill/warpgroup_products.h"

namespace moed::backend {

size_t WarpgroupExpertsAtOnce(const ExpertFormat& format, size_t experts, size_t rows, size_t most,
                              int multiprocessors) {
  // What launches and unpacking cost beside products, in stages of products.
  constexpr size_t kStagesPerLaunch = 8;
  if (experts <= most) return experts;
  const size_t tiles_each = (rows / experts + kWarpgroupProductRows - 1) / kWarpgroupProductRows;
  const auto stages = [&](size_t count, size_t outputs, size_t depth) {
    const size_t blocks =
        count * tiles_each * ((outputs + kWarpgroupBlockOutputs - 1) / kWarpgroupBlockOutputs);
    return (blocks + multiprocessors - 1) / multiprocessors *
           ((depth + kWarpgroupDepth - 1) / kWarpgroupDepth);
  };
  const auto stages_of = [&](size_t count) {
    return stages(count, 2 * format.intermediate(), format.hidden()) +
           stages(count, format.hidden(), format.intermediate()) + kStagesPerLaunch;
  };
  size_t best = most;
  size_t fewest = SIZE_MAX;
  for (size_t count = most; 2 * count > most; --count) {
    const size_t left = experts % count;
    const size_t all = experts / count * stages_of(count) + (left > 0 ? stages_of(left) : 0);
    if (all >= fewest) continue;
    fewest = all;
    best = count;
  }
  return best;
}

}  // namespace moed::backend
