// The paged key-value cache of all layers: one allocation, cut into blocks that the scheduler hands
// out by number. A block has room for kKvBlockTokens tokens in every layer. Owned by the
// transformer; engine thread only.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/model_config.h"

namespace moed::model {

inline constexpr int kKvBlockTokens = 16;

// Bytes of one block over all layers: keys and values, bf16.
int64_t KvBlockBytes(const ModelConfig& config);

class KvCache {
 public:
  // RESOURCE_EXHAUSTED: no memory for it.
  static absl::StatusOr<KvCache> Create(const ModelConfig& config, int num_blocks,
                                        backend::Backend& backend);

  // keys, values: [num_blocks, kKvBlockTokens, kv_heads * D] bf16.
  backend::KvLayer Layer(int layer) const;
  int num_blocks() const { return num_blocks_; }

 private:
  KvCache(backend::Buffer buffer, int num_blocks, int64_t row_values)
      : buffer_(std::move(buffer)), num_blocks_(num_blocks), row_values_(row_values) {}

  backend::Buffer buffer_;  // [layers][keys, values][num_blocks, kKvBlockTokens, row_values]
  int num_blocks_;
  int64_t row_values_;  // kv_heads * D
};

}  // namespace moed::model
