// The CPU's part of a single token's experts within the kernel that computes the rest: the block
// that has no tasks then posts the request, records the choice, waits for the sums and adds them.
// The link's blocks let the request go first, but not for long; nothing else waits for that block
// but the end of its launch, so all others run, whatever the CPU does.
#pragma once

#include "runtime/backend/cuda/experts/token_choice.cuh"
#include "runtime/backend/cuda/plan/cold_collect.cuh"
#include "runtime/backend/cuda/primitives/global_add.cuh"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"

namespace moed::backend {

constexpr uint64_t kMostPostNs = 20000;  // far longer than a post takes

// By all threads of a block of the link, before a barrier. The link answers in order: behind all
// that its blocks ask for at once a request would be posted 40 us late.
__device__ inline void LetPostGoFirst(const TokenMail& mail, const NeuronTiles& tiles) {
  if (threadIdx.x != 0 || !tiles.mails()) return;
  const volatile uint32_t* const is_posted = &mail.state->is_posted;
  for (const uint64_t start = Nanoseconds(); *is_posted == 0;) {
    if (Nanoseconds() - start > kMostPostNs) return;
  }
}

// By all threads of each of the link's `blocks` blocks, once all of them are done.
__device__ inline void EndLink(const TokenMail& mail, const NeuronTiles& tiles, int blocks) {
  if (threadIdx.x != 0 || !tiles.mails() || tiles.link == 0) return;
  ArriveFromLink(mail.state, blocks, tiles.link);
}

// By the first warp, as early as can be: the CPU's part takes longest. x is in the mailbox.
template <int kThreads>
__device__ void PostItems(const TokenChoice& choice, const ChosenExperts<kThreads>& chosen,
                          float weight) {
  const TokenMail& mail = choice.mail;
  const int lane = threadIdx.x;
  const int item = chosen.item[lane];
  const int num_items = __popc(__ballot_sync(0xffffffffu, item >= 0));
  if (MailFailed(*mail.state)) return;
  if (item >= 0) {
    const int neurons = choice.plan.tiles_per_expert * kTileNeurons;
    const int num_neurons = chosen.use[lane].cpu_neurons;
    WriteTokenItem(mail.mailbox, item, chosen.expert[lane], neurons - num_neurons, num_neurons,
                   weight);
  }
  if (lane == 0) WriteTokenRequest(mail.mailbox, mail.layer, num_items);
  __syncwarp();
  if (lane == 0) PostSequence(mail.mailbox, mail.state);
}

// output [1, hidden] += the CPU's sums, once they are there.
template <int kThreads>
__device__ void AddReply(const TokenMail& mail, float* output) {
  __shared__ bool answered;
  if (threadIdx.x == 0) answered = WaitForReply(mail.mailbox, mail.state, mail.timeout_ns);
  __syncthreads();
  if (!answered) return;
  constexpr int kPerThread = kMostNeuronColumns / 4 / kThreads;
  const int count = static_cast<int>(mail.mailbox.hidden / 4);
  float4 sums[kPerThread];  // all on their way at once
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + threadIdx.x;
    if (at < count) sums[i] = LoadFromHost(mail.mailbox.sums + 4 * at);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + threadIdx.x;
    if (at < count) AddToGlobal(output + 4 * at, sums[i]);
  }
}

// All that the block does which the tasks leave, after Choose. `link_blocks`: as for EndLink.
template <int kThreads>
__device__ void RunMail(const TokenChoice& choice, const ChosenExperts<kThreads>& chosen,
                        int link_blocks, NeuronTasks* tasks, float* output) {
  const float weight = chosen.Weigh(choice, tasks);
  if (threadIdx.x < 32) PostItems(choice, chosen, weight);
  if (threadIdx.x == 0 && chosen.tiles.link > 0) OpenLink(choice.mail.state);
  EndLink(choice.mail, chosen.tiles, link_blocks);
  LetNextKernelBegin();
  chosen.Record(choice);
  AddReply<kThreads>(choice.mail, output);
}

}  // namespace moed::backend
