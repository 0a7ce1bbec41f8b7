// Where a token's key or value of one head lies in a layer's paged cache on the CPU. Inside a block
// each head's tokens are side by side, [kv_heads][block_tokens][D]: attention runs head by head,
// and rows of one head that lie a row of all heads apart fall into the same few cache sets.
#pragma once

#include <cstdint>

#include "runtime/backend/backend.h"

namespace moed::backend {

// Elements from the start of KvLayer::keys or values to the D values of token `slot` of a block.
inline int64_t KvOffset(const AttentionSpec& spec, const KvLayer& cache, int64_t block,
                        int64_t slot, int64_t kv_head) {
  return ((block * spec.kv_heads + kv_head) * cache.block_tokens + slot) * spec.head_dim;
}

}  // namespace moed::backend
