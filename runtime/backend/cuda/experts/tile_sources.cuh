// Where the weights of a fused kernel's tiles come from (expert_tiles.cu): all through registers,
// or through shared memory what there is room for.
#pragma once

#include <type_traits>

#include "runtime/backend/cuda/experts/down_sources.cuh"
#include "runtime/backend/cuda/experts/gate_up_sources.cuh"

namespace moed::backend {

template <class Format>
struct RegisterTiles {
  using GateUp = RegisterGateUp<Format>;
  using Down = RegisterDown<Format>;
};

template <class Format>
struct StagedTiles {
  using GateUp = StagedGateUp<Format>;
  using Down =
      std::conditional_t<Format::kStagedDownTiles == 0, RegisterDown<Format>, StagedDown<Format>>;
};

}  // namespace moed::backend
