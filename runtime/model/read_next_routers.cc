#include "runtime/model/read_next_routers.h"

#include <utility>
#include <vector>

#include "runtime/backend/dtype.h"
#include "runtime/model/dense_values.h"

namespace moed::model {
namespace {

absl::StatusOr<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, DenseRole role,
                                              int layer) {
  const absl::StatusOr<HostTensor> tensor = checkpoint.ReadDense(role, layer);
  if (!tensor.ok()) return tensor.status();
  std::vector<float> values;
  AppendFloats(tensor->view, &values);
  return values;
}

// router [experts, hidden] for an input that was scaled by `norm`, not by `next_norm`. A column
// whose input is always zero tells nothing.
std::vector<backend::BFloat16> Rescaled(const std::vector<float>& router,
                                        const std::vector<float>& norm,
                                        const std::vector<float>& next_norm) {
  std::vector<float> scale(norm.size());
  for (size_t i = 0; i < norm.size(); ++i) scale[i] = norm[i] == 0 ? 0 : next_norm[i] / norm[i];
  std::vector<backend::BFloat16> weights;
  weights.reserve(router.size());
  while (weights.size() < router.size()) {
    for (const float factor : scale) {
      weights.push_back(backend::ToBFloat16(router[weights.size()] * factor));
    }
  }
  return weights;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const backend::NextRouters>> ReadNextRouters(
    const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  auto routers = std::make_shared<backend::NextRouters>(config.num_layers());
  int next = -1;
  std::vector<float> next_router;
  std::vector<float> next_norm;
  for (int layer = config.num_layers() - 1; layer >= 0; --layer) {
    if (!config.layers[layer].is_moe) continue;
    auto norm = ReadFloats(checkpoint, DenseRole::kFfnNorm, layer);
    if (!norm.ok()) return norm.status();
    if (next >= 0) (*routers)[layer] = {next, Rescaled(next_router, *norm, next_norm)};
    auto router = ReadFloats(checkpoint, DenseRole::kRouter, layer);
    if (!router.ok()) return router.status();
    next = layer;
    next_router = *std::move(router);
    next_norm = *std::move(norm);
  }
  return routers;
}

}  // namespace moed::model
