// Handing a layer's cold experts over to the CPU: its input into the mailbox, then the request's
// number.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "runtime/backend/cuda/plan/cold_path.h"

namespace moed::backend {

__device__ inline uint64_t Nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

__device__ inline void StoreRelaxed(uint32_t* address, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// Whether an answer did not come in this step. The CPU may still read what it belonged to.
__device__ inline bool MailFailed(const ColdState& state) {
  return *static_cast<const volatile uint32_t*>(&state.step.failed) != 0;
}

// By `threads` threads, of which this is number `thread`: rows of x [rows, hidden] into the
// mailbox.
__device__ inline void CopyIntoMailbox(const ColdMailbox& mailbox, const __nv_bfloat16* x, int rows,
                                       int thread, int threads) {
  const int chunks = static_cast<int>(mailbox.hidden / 8);
  for (int i = thread; i < rows * chunks; i += threads) {
    const uint4 values = reinterpret_cast<const uint4*>(x)[i];
    BFloat16* const row = mailbox.x + i / chunks * mailbox.row_values;
    reinterpret_cast<uint4*>(row)[i % chunks] = values;
  }
}

// What a request of one token says: by one thread each.
__device__ inline void WriteTokenRequest(const ColdMailbox& mailbox, int layer, int num_items) {
  mailbox.request->layer = layer;
  mailbox.request->rows = 1;
  mailbox.request->num_items = num_items;
}
__device__ inline void WriteTokenItem(const ColdMailbox& mailbox, int item, int expert,
                                      int first_neuron, int num_neurons, float weight) {
  mailbox.items[item] = {expert, first_neuron, num_neurons, /*first_pair=*/item, /*num_pairs=*/1};
  mailbox.pairs[item] = {/*row=*/0, weight};
}

// By one thread, after everything that belongs to the request was written, by itself or before a
// barrier of its block.
__device__ inline void PostSequence(const ColdMailbox& mailbox, ColdState* state) {
  const uint32_t sequence = state->sequence + 1;
  state->sequence = sequence;
  state->posted_ns = Nanoseconds();
  __threadfence_system();
  StoreRelaxed(&mailbox.request->sequence, sequence);
}

}  // namespace moed::backend
