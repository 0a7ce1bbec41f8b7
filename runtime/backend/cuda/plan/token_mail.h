// What the expert kernel of a single token needs to hand the CPU its part, and to take it back
// (experts/token_mail.cuh). Made by CudaColdPath.
#pragma once

#include <cstdint>

#include "runtime/backend/cold_mailbox.h"

namespace moed::backend {

struct ColdState;  // cold_path.h

// One block posts what is the CPU's and adds what comes back.
struct TokenMail {
  ColdState* state = nullptr;  // null: the CPU takes no part
  ColdMailbox mailbox;
  int layer = 0;
  uint64_t timeout_ns = 0;
};

}  // namespace moed::backend
