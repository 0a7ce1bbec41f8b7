// How many experts to multiply at a time where not all can be, because they are unpacked first.
#pragma once

#include <cstddef>

#include "runtime/backend/expert_format.h"

namespace moed::backend {

// Of `experts` with `rows` in all, at most `most` at a time: as many as are multiplied soonest by
// warpgroup products, whose tiles leave few multiprocessors idle at the ends of launches.
size_t WarpgroupExpertsAtOnce(const ExpertFormat& format, size_t experts, size_t rows, size_t most,
                              int multiprocessors);

}  // namespace moed::backend
