#include "runtime/backend/cpu/packed_weight.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/backend/host_memory.h"

namespace moed::backend {
namespace {

constexpr int64_t kDepthMultiple = 32;

absl::Status CheckShapes(const Tensor& weight, const Tensor& bias) {
  if (weight.rank() != 2 || weight.dtype() != DType::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("a dense weight must be a bf16 matrix, not ", weight.rank(),
                     "-dimensional of another type; convert the checkpoint to bf16"));
  }
  if (!bias.empty() && (bias.dtype() != DType::kF32 || bias.num_elements() != weight.dim(0))) {
    return absl::InvalidArgumentError(absl::StrCat("a bias of ", bias.num_elements(),
                                                   " elements does not fit a weight with ",
                                                   weight.dim(0), " outputs"));
  }
  return absl::OkStatus();
}

}  // namespace

PackedWeight::PackedWeight(int64_t out, int64_t in)
    : out_(out), in_(in), depth_((in + kDepthMultiple - 1) / kDepthMultiple * kDepthMultiple) {}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackedWeight::Pack(ThreadPool& pool,
                                                                 const Tensor& weight,
                                                                 const Tensor& bias) {
  if (absl::Status status = CheckShapes(weight, bias); !status.ok()) return status;
  std::unique_ptr<PackedWeight> packed(new PackedWeight(weight.dim(0), weight.dim(1)));
  absl::StatusOr<Buffer> panels = AllocateHostMemory(
      packed->num_panels() * packed->panel_elements() * sizeof(BFloat16), "a dense weight");
  if (!panels.ok()) return panels.status();
  packed->panels_ = *std::move(panels);
  if (!bias.empty()) packed->bias_.assign(bias.As<float>(), bias.As<float>() + packed->out_);

  auto pack_panels = [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      std::array<const BFloat16*, kPanelColumns> columns;
      const int64_t first = p * kPanelColumns;
      const int64_t count = std::min(kPanelColumns, packed->out_ - first);
      for (int64_t n = 0; n < count; ++n) {
        columns[n] = weight.As<BFloat16>() + (first + n) * packed->in_;
      }
      PackColumns(
          std::span(columns).first(count), packed->in_, packed->depth_,
          reinterpret_cast<BFloat16*>(packed->panels_.data()) + p * packed->panel_elements());
    }
  };
  pool.ParallelFor(packed->num_panels(), 1, pack_panels);
  return packed;
}

}  // namespace moed::backend
