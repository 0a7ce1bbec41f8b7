#include "runtime/backend/cuda/dense/dense_weight.h"

namespace moed::backend {
namespace {

absl::StatusOr<Buffer> CopyOf(const Tensor& tensor, std::string_view what, Backend& backend) {
  if (tensor.empty()) return Buffer();
  const auto bytes = static_cast<size_t>(tensor.num_bytes());
  absl::StatusOr<Buffer> buffer = backend.Allocate(bytes, MemoryKind::kDevice, what);
  if (!buffer.ok()) return buffer;
  absl::Status status = backend.CopyFromHost({tensor.As<const std::byte>(), bytes}, buffer->data());
  if (!status.ok()) return status;
  return buffer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearWeight>> MakeCudaLinear(const Tensor& weight,
                                                             const Tensor& bias, Backend& backend) {
  absl::StatusOr<Buffer> values = CopyOf(weight, "a dense weight", backend);
  if (!values.ok()) return values.status();
  absl::StatusOr<Buffer> bias_values = CopyOf(bias, "a bias", backend);
  if (!bias_values.ok()) return bias_values.status();
  return std::make_unique<CudaLinear>(*std::move(values), *std::move(bias_values), weight.dim(0),
                                      weight.dim(1));
}

LinearArguments ArgumentsOf(std::span<const LinearProduct> products, const Tensor& x,
                            bool accumulate) {
  LinearArguments arguments;
  for (const LinearProduct& product : products) {
    const auto& linear = static_cast<const CudaLinear&>(*product.weight);
    arguments.parts[arguments.num_parts++] = {
        .weight = linear.weight(),
        .bias = linear.bias(),
        .out = product.out.As<float>(),
        .out_features = static_cast<int>(linear.out_features())};
  }
  arguments.x = x.As<__nv_bfloat16>();
  arguments.rows = static_cast<int>(x.dim(0));
  arguments.in_features = static_cast<int>(x.dim(1));
  arguments.accumulate = accumulate;
  return arguments;
}

}  // namespace moed::backend
