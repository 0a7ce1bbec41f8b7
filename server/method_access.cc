#include "server/method_access.h"

#include <algorithm>

namespace moed::server {
namespace {

constexpr MethodAccess kMethods[] = {
    {"/grpc.health.v1.Health/Check", Access::kOpen},
    {"/grpc.health.v1.Health/Watch", Access::kOpen},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::kInference},
    {"/moed.v1.Admin/PinExperts", Access::kAdmin},
    {"/moed.v1.Admin/ResetStats", Access::kAdmin},
    {"/moed.v1.Admin/SaveHotSet", Access::kAdmin},
    {"/moed.v1.Admin/SetBudget", Access::kAdmin},
    {"/moed.v1.Admin/UnpinExperts", Access::kAdmin},
    {"/moed.v1.Experts/GetBudgetCurve", Access::kObserve},
    {"/moed.v1.Experts/GetStats", Access::kObserve},
    {"/moed.v1.Experts/Watch", Access::kObserve},
    {"/moed.v1.Inference/Chat", Access::kInference},
    {"/moed.v1.Inference/Detokenize", Access::kInference},
    {"/moed.v1.Inference/Generate", Access::kInference},
    {"/moed.v1.Inference/GenerateOnce", Access::kInference},
    {"/moed.v1.Inference/GetModel", Access::kInference},
    {"/moed.v1.Inference/Tokenize", Access::kInference},
    {"/vllm.grpc.engine.VllmEngine/Abort", Access::kInference},
    {"/vllm.grpc.engine.VllmEngine/Generate", Access::kInference},
    {"/vllm.grpc.engine.VllmEngine/GetLoads", Access::kObserve},
    {"/vllm.grpc.engine.VllmEngine/GetModelInfo", Access::kInference},
    {"/vllm.grpc.engine.VllmEngine/GetServerInfo", Access::kObserve},
    {"/vllm.grpc.engine.VllmEngine/GetTokenizer", Access::kInference},
    {"/vllm.grpc.engine.VllmEngine/HealthCheck", Access::kOpen},
};

}  // namespace

absl::Span<const MethodAccess> AllMethods() { return kMethods; }

Access AccessOf(absl::string_view path) {
  const auto* found =
      std::find_if(std::begin(kMethods), std::end(kMethods),
                   [path](const MethodAccess& method) { return method.path == path; });
  return found == std::end(kMethods) ? Access::kNobody : found->access;
}

}  // namespace moed::server
