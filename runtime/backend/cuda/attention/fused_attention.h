// The attention half of a layer for a step of one token (AttentionHalf of backend.h) in one launch:
// norm, q, k, v, rotary embedding, attention and the output projection, between which the blocks
// wait for one another's values and already fetch the next weights. At one token each of these
// lasts no longer than a launch. The first weights are fetched while the kernel ahead ends.
#pragma once

#include <cuda_runtime.h>

#include <compare>
#include <cstddef>

#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/attention/prepare_qkv.h"
#include "runtime/backend/cuda/dense/linear.h"

namespace moed::backend {

struct FusedAttentionArguments {
  LinearArguments qkv;           // normed; nothing is written to the parts' out
  PrepareQkvArguments prepare;   // but for q, k, v
  AttentionArguments attention;  // but for q, out, scratch
  LinearPart output;             // added to qkv.residual
  // FusedAttentionExchangeBytes() of device memory, zeros before the shape's first launch.
  std::byte* exchange = nullptr;
};

// What the launch needs of the device.
struct FusedAttentionShape {
  int hidden = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int multiprocessors = 0;

  auto operator<=>(const FusedAttentionShape&) const = default;
};

// Whether the current device takes the shape.
bool FusedAttentionSupports(const FusedAttentionShape& shape);

// Into how many parts a context of at most `max_context` tokens is split.
int FusedAttentionSplits(const FusedAttentionShape& shape, int max_context);

size_t FusedAttentionExchangeBytes(const FusedAttentionShape& shape);

// One at a time on a device: blocks that wait for one another must all run at once.
cudaError_t LaunchFusedAttention(const FusedAttentionArguments& arguments,
                                 const FusedAttentionShape& shape, cudaStream_t stream);

}  // namespace moed::backend
