// A GPU that reads host memory over its link for as long as this lives, as the device's part of a
// step does while the CPU computes its own: for benchmarks of the CPU's part. One thread.
#pragma once

#include <cstddef>
#include <memory>

namespace moed {

class LinkReader {
 public:
  // Dies where there is no GPU to read with.
  LinkReader();
  ~LinkReader();
  LinkReader(const LinkReader&) = delete;
  LinkReader& operator=(const LinkReader&) = delete;

  // Bytes per second since the last call, or since it began.
  double Rate();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moed
