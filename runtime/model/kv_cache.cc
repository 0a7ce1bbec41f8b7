#include "runtime/model/kv_cache.h"

#include <utility>

namespace moed::model {

using backend::DType;
using backend::Tensor;

int64_t KvBlockBytes(const ModelConfig& config) {
  const int64_t row_bytes =
      int64_t{config.kv_heads} * config.head_dim * int64_t{SizeOf(DType::kBF16)};
  return 2 * row_bytes * kKvBlockTokens * config.num_layers();
}

absl::StatusOr<KvCache> KvCache::Create(const ModelConfig& config, int num_blocks,
                                        backend::Backend& backend) {
  auto buffer =
      backend.Allocate(KvBlockBytes(config) * num_blocks, backend::MemoryKind::kDevice, "KV cache");
  if (!buffer.ok()) return buffer.status();
  return KvCache(*std::move(buffer), num_blocks, int64_t{config.kv_heads} * config.head_dim);
}

backend::KvLayer KvCache::Layer(int layer) const {
  const int64_t part_bytes =
      num_blocks_ * kKvBlockTokens * row_values_ * int64_t{SizeOf(DType::kBF16)};
  std::byte* const keys = buffer_.data() + 2 * layer * part_bytes;
  return {
      .keys = Tensor(keys, DType::kBF16, {num_blocks_, kKvBlockTokens, row_values_}),
      .values = Tensor(keys + part_bytes, DType::kBF16, {num_blocks_, kKvBlockTokens, row_values_}),
      .block_tokens = kKvBlockTokens};
}

}  // namespace moed::model
