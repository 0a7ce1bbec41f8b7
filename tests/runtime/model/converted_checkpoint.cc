#include "tests/runtime/model/converted_checkpoint.h"

#include "absl/base/internal/raw_logging.h"
#include "gtest/gtest.h"

namespace moed::model {

ConvertedCheckpoint::ConvertedCheckpoint(const std::string& source)
    : result_(
          ConvertCheckpoint(*OpenGood(source),
                            {.destination = directory(), .threads = 2, .max_stored_ratio = 1000})) {
  EXPECT_TRUE(result_.ok()) << result_.status();
}

std::unique_ptr<Checkpoint> OpenGood(const std::string& directory) {
  auto checkpoint = OpenCheckpoint({.directory = directory});
  ABSL_RAW_CHECK(checkpoint.ok(), checkpoint.status().ToString().c_str());
  return *std::move(checkpoint);
}

}  // namespace moed::model
