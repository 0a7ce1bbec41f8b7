// While one lives, Ctrl-C cancels a call instead of ending the process. One at a time.
#pragma once

#include <thread>

#include "client/client.h"

namespace moed::client {

class CancelOnInterrupt {
 public:
  explicit CancelOnInterrupt(Call& call);
  ~CancelOnInterrupt();
  CancelOnInterrupt(const CancelOnInterrupt&) = delete;
  CancelOnInterrupt& operator=(const CancelOnInterrupt&) = delete;

 private:
  std::jthread watcher_;
};

}  // namespace moed::client
