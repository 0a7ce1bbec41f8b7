// Experts in another format than they are stored in: each is encoded or decoded as it is read, bit
// for bit the same weights. Reading is thread-safe and takes room for one stored expert a thread;
// the first share is all of an expert.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// bf12 from bf16. For loading, not for requests: one thread reads and encodes all of an expert.
class EncodedExperts : public ExpertSource {
 public:
  // `source` must outlive this.
  EncodedExperts(const ExpertSource& source, const backend::ExpertFormat& format)
      : source_(source), format_(format) {}

  const backend::ExpertFormat& format() const override { return format_; }
  // OUT_OF_RANGE, naming the expert: it has more escapes than `format` has room for. The source's
  // errors.
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override;

  // Of an expert as the source has it: what a thread that reads needs room for.
  size_t stored_bytes() const { return source_.format().blob_bytes(); }
  // Of all experts that were read.
  int64_t listed_escapes() const { return listed_escapes_; }

 private:
  const ExpertSource& source_;
  backend::ExpertFormat format_;
  mutable std::atomic<int64_t> listed_escapes_ = 0;
};

// bf16 from bf12.
class DecodedExperts : public ExpertSource {
 public:
  // `source` must outlive this.
  explicit DecodedExperts(const ExpertSource& source)
      : source_(source),
        format_(backend::ExpertFormatKind::kBF16, source.format().hidden(),
                source.format().intermediate()) {}

  const backend::ExpertFormat& format() const override { return format_; }
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override;

 private:
  const ExpertSource& source_;
  backend::ExpertFormat format_;
};

// The bf12 format for a model whose experts `source` has in bf16: room for escapes is chosen by the
// fullest of a sample, with some to spare. The source's errors.
absl::StatusOr<backend::ExpertFormat> SampleBf12Format(const ModelConfig& config,
                                                       const ExpertSource& source);

}  // namespace moed::model
