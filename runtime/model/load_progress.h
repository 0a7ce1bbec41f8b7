// How whoever starts a model hears how far loading has come.
#pragma once

#include <cstdint>
#include <functional>

namespace moed::model {

// Called now and then, on the loading thread: bytes so far, and in all. May be empty.
using LoadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

}  // namespace moed::model
