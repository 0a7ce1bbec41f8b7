// `moed cache-sim TRACE`: what policies and budgets would have done on routing that the daemon
// recorded with --record-routing. Offline; needs no model.
#pragma once

#include <string>
#include <vector>

namespace moed::server {

// `arguments` after the subcommand's name. Prints to standard output and returns the exit code.
int RunCacheSim(const std::vector<std::string>& arguments);

}  // namespace moed::server
