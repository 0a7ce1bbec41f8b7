// The attention half of a layer for a step of one token (AttentionHalf of backend.h) in one launch:
// norm, q, k, v, rotary embedding, attention and the output projection, between which the blocks
// wait for one another and already fetch the next weights. At one token each of these lasts no
// longer than a launch. The first weights are fetched while the kernel ahead ends.
#pragma once

#include <cuda_runtime.h>

#include <compare>
#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/attention.h"
#include "runtime/backend/cuda/linear.h"
#include "runtime/backend/cuda/prepare_qkv.h"

namespace moed::backend {

struct FusedAttentionArguments {
  LinearArguments qkv;           // normed; its outputs are scratch
  PrepareQkvArguments prepare;   // q, k, v: as projected
  AttentionArguments attention;  // out is not written; scratch: FusedAttentionScratchBytes()
  LinearPart output;             // added to qkv.residual
  uint32_t* barriers = nullptr;  // FusedAttentionBarrierBytes(), zeros before the first launch
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

size_t FusedAttentionBarrierBytes(const FusedAttentionShape& shape);
size_t FusedAttentionScratchBytes(const FusedAttentionShape& shape, int splits);

cudaError_t LaunchFusedAttention(const FusedAttentionArguments& arguments,
                                 const FusedAttentionShape& shape, cudaStream_t stream);

}  // namespace moed::backend
