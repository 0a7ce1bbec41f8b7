// Whether bytes of a checkpoint will be asked for again: whoever reads them says so, since only
// then are they worth their place in the page cache and the time that it takes. Any thread.
#pragma once

#include <cstdint>

namespace moed::model {

enum class Reread : uint8_t { kLikely, kNever };

}  // namespace moed::model
