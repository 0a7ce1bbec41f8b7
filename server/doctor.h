// moed doctor: looks at the machine and the checkpoint as the daemon would find them and says what
// is in the way of speed or of starting at all, each with a remedy.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "server/options.h"

namespace moed::server {

struct Finding {
  enum class Kind { kOk, kAdvice, kProblem };
  Kind kind = Kind::kOk;
  std::string what;    // "locked memory"
  std::string found;   // "64 KiB may be pinned"
  std::string remedy;  // empty if all is well
};

// `root` stands in for "/" in tests: proc, sys and dev are read below it.
std::vector<Finding> ExamineMachine(const Options& options, const std::string& root = "");
std::vector<Finding> ExamineModel(const Options& options);

// Writes all findings. The exit code: 1 if there is a problem.
int RunDoctor(const Options& options, std::ostream& out);

}  // namespace moed::server
