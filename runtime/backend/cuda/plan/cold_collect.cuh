// Taking the CPU's answer to a layer's request, and what its part is compared with: how long the
// link's took.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/backend/cuda/plan/cold_path.h"
#include "runtime/backend/cuda/plan/cold_post.cuh"

namespace moed::backend {

// To be followed by a fence where what it guards is read: a load that acquires takes 17 us on an
// H200, this and a fence three.
__device__ inline uint32_t LoadRelaxed(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// The CPU wrote it while the kernel ran: no cache may answer.
__device__ inline float4 LoadFromHost(const float* address) {
  float4 value;
  asm volatile("ld.volatile.global.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

// By one thread of the device: the link has done its part of what was posted last.
__device__ inline void CountLink(ColdState* state, int link_cost) {
  const uint64_t posted = *static_cast<const volatile uint64_t*>(&state->posted_ns);
  state->step.link_cost += link_cost;
  state->step.link_ns += static_cast<int64_t>(Nanoseconds() - posted);
}

// By the thread that posted: the blocks that read over the link may begin.
__device__ inline void OpenLink(ColdState* state) {
  *static_cast<volatile uint32_t*>(&state->is_posted) = 1;
}

// By a thread of each of the link's `blocks` blocks of a kernel once its part is done, and of the
// one that posted: the last of them counts what the link took.
__device__ inline void ArriveFromLink(ColdState* state, int blocks, int link_cost) {
  __threadfence();
  if (atomicAdd(&state->arrived, 1) != blocks) return;
  __threadfence();
  state->arrived = 0;
  state->is_posted = 0;
  CountLink(state, link_cost);
}

// By one thread. False if the answer did not come in time, or an earlier one did not.
__device__ inline bool WaitForReply(const ColdMailbox& mailbox, ColdState* state,
                                    uint64_t timeout_ns) {
  const uint64_t start = Nanoseconds();
  while (!MailFailed(*state)) {
    if (LoadRelaxed(&mailbox.reply->sequence) == state->sequence) {
      __threadfence_system();
      return true;
    }
    if (Nanoseconds() - start > timeout_ns) state->step.failed = 1;
    __nanosleep(100);
  }
  return false;
}

}  // namespace moed::backend
