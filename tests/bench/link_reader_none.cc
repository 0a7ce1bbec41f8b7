// Of a build without CUDA.
#include "absl/base/internal/raw_logging.h"
#include "tests/bench/link_reader.h"

namespace moed {

struct LinkReader::State {};

LinkReader::LinkReader() {
  ABSL_RAW_LOG(FATAL, "only a build with CUDA can keep the link busy: use the CUDA preset");
}
LinkReader::~LinkReader() = default;
double LinkReader::Rate() { return 0; }

}  // namespace moed
