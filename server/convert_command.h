// `moed convert SOURCE DESTINATION`: writes a checkpoint anew with its experts in bf12, bit for bit
// the same weights in three quarters of the bytes. Offline.
#pragma once

#include <string>
#include <vector>

namespace moed::server {

// `arguments` after the subcommand's name. Prints to standard output, shows progress on standard
// error, and returns the exit code.
int RunConvert(const std::vector<std::string>& arguments);

}  // namespace moed::server
