// moed --check-config: whether the daemon would start with these options, without starting it.
#pragma once

#include <ostream>

#include "server/options.h"

namespace moed::server {

// Writes a line for each thing that was looked at: flags (they are parsed already), certificates,
// keys, the checkpoint's headers. The exit code: 0 if all is well.
int CheckConfiguration(const Options& options, std::ostream& out);

}  // namespace moed::server
