// A sequence's next token as backend::RowSampler is asked for it: plain arguments of one row. Pure
// functions; any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/backend/row_sampler.h"
#include "runtime/model/sampling.h"

namespace moed::model {

// How many adjustments MakeRowSampling appends.
int64_t CountAdjustments(const SamplerState& state);

// What Sampler::Sample does with `state`, for row `row` of the logits. Appends the row's
// adjustments to `adjustments`, those of all rows.
backend::RowSampling MakeRowSampling(const SamplerState& state, int32_t row,
                                     std::vector<backend::LogitAdjustment>* adjustments);

}  // namespace moed::model
