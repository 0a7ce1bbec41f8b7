#include "runtime/model/convert_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/encoded_layout.h"
#include "runtime/model/encoded_writer.h"
#include "runtime/model/for_each_expert.h"
#include "runtime/model/staging_directory.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;
using backend::ExpertFormat;
using backend::ExpertFormatKind;

constexpr char kMeasuring[] = "measuring";
constexpr char kEncoding[] = "encoding";

// Counts what threads have done and tells whoever asked.
class Progress {
 public:
  Progress(const ConvertOptions& options, const char* what, int64_t total)
      : options_(options), what_(what), total_(total) {}

  // CANCELLED if somebody wants it to end.
  absl::Status Add(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    done_ += bytes;
    if (options_.progress) options_.progress(what_, done_, total_);
    if (options_.cancelled && options_.cancelled()) return absl::CancelledError("interrupted");
    return absl::OkStatus();
  }

 private:
  const ConvertOptions& options_;
  const char* const what_;
  const int64_t total_;
  std::mutex mutex_;
  int64_t done_ = 0;
};

// What all experts together ask of the encoding.
struct Measure {
  int most_escapes = 0;
  int64_t overfull = 0;  // experts that no capacity holds
  cache::ExpertKey first_overfull;
};

class Converter {
 public:
  Converter(const Checkpoint& source, const ConvertOptions& options)
      : source_(source),
        options_(options),
        keys_(AllExperts(source.config())),
        plain_(source.experts().format()),
        total_bytes_(static_cast<int64_t>(keys_.size() * plain_.blob_bytes())),
        threads_(ExpertThreads(options.threads, 2 * plain_.blob_bytes())) {}

  absl::StatusOr<ConvertResult> Run() {
    if (absl::Status status = CheckSource(); !status.ok()) return status;
    absl::StatusOr<StagingDirectory> staging = StagingDirectory::Create(options_.destination);
    if (!staging.ok()) return staging.status();
    const absl::StatusOr<Measure> measure = MeasureExperts();
    if (!measure.ok()) return measure.status();
    const absl::StatusOr<ExpertFormat> format = ChooseFormat(*measure);
    if (!format.ok()) return format.status();
    ConvertResult result = {
        .format = *format,
        .num_experts = static_cast<int64_t>(keys_.size()),
        .bf16_bytes = total_bytes_,
        .stored_bytes = static_cast<int64_t>(keys_.size() * format->blob_bytes()),
        .most_escapes = measure->most_escapes};
    absl::StatusOr<EncodedWriter> writer = EncodedWriter::Create(source_, *format, *staging);
    if (!writer.ok()) return writer.status();
    result.dense_bytes = writer->dense_bytes();
    absl::Status status = CheckSpace(result, *staging);
    if (status.ok()) status = writer->WriteDense();
    if (status.ok()) status = EncodeExperts(*format, *writer);
    if (status.ok()) status = writer->Finish();
    if (status.ok()) status = staging->Commit();
    if (!status.ok()) return status;
    return result;
  }

 private:
  absl::Status CheckSource() const {
    if (keys_.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(source_.directory(), ": a model without experts; nothing to convert"));
    }
    if (plain_.kind() != ExpertFormatKind::kBF16) {
      return absl::FailedPreconditionError(
          absl::StrCat(source_.directory(), ": converted already, its experts are in ",
                       std::string(backend::ExpertFormatName(plain_.kind()))));
    }
    if (!backend::Bf12Supports(plain_.hidden())) {
      return absl::FailedPreconditionError(absl::StrCat(
          source_.directory(), ": bf12 cannot hold experts of hidden size ", plain_.hidden()));
    }
    return absl::OkStatus();
  }

  // Calls `visit` with every expert in bf16, from threads.
  absl::Status VisitExperts(
      const char* what,
      absl::FunctionRef<absl::Status(cache::ExpertKey, std::span<const std::byte>)> visit) {
    Progress progress(options_, what, total_bytes_);
    return ForEachExpert(keys_, threads_, [&](cache::ExpertKey key) {
      const auto blob = ExpertScratch(ScratchPurpose::kSource, plain_.blob_bytes());
      if (!blob.ok()) return blob.status();
      absl::Status status = source_.experts().Read(key, {}, *blob);
      if (status.ok()) status = visit(key, *blob);
      if (status.ok()) status = progress.Add(static_cast<int64_t>(plain_.blob_bytes()));
      return status;
    });
  }

  absl::StatusOr<Measure> MeasureExperts() {
    std::mutex mutex;
    Measure measure;  // guarded by mutex
    const auto visit = [&](cache::ExpertKey key, std::span<const std::byte> blob) {
      const int needed = backend::Bf12TileEscapesNeeded(plain_, blob);
      const std::lock_guard lock(mutex);
      if (backend::Bf12ExactTileEscapeCapacity(needed) >= 0) {
        measure.most_escapes = std::max(measure.most_escapes, needed);
      } else if (measure.overfull++ == 0) {
        measure.first_overfull = key;
      }
      return absl::OkStatus();
    };
    absl::Status status = VisitExperts(kMeasuring, visit);
    if (!status.ok()) return status;
    return measure;
  }

  absl::StatusOr<ExpertFormat> ChooseFormat(const Measure& measure) const {
    if (measure.overfull > 0) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "%s: %d of %d experts (expert %d of layer %d among them) have too many values that no "
          "window of 16 exponents covers; the model stays bf16",
          source_.directory(), measure.overfull, keys_.size(), measure.first_overfull.expert,
          measure.first_overfull.layer));
    }
    const ExpertFormat format(ExpertFormatKind::kBF12, plain_.hidden(), plain_.intermediate(),
                              backend::Bf12ExactTileEscapeCapacity(measure.most_escapes));
    if (format.stored_ratio() > options_.max_stored_ratio) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "%s: in bf12 its experts take %.1f %% of their bf16 bytes, which does not pay (their "
          "hidden size, %d, is filled up to a multiple of 128); the model stays bf16",
          source_.directory(), 100 * format.stored_ratio(), plain_.hidden()));
    }
    return format;
  }

  // A full disk is found before hours of work, where the file system tells.
  absl::Status CheckSpace(const ConvertResult& result, const StagingDirectory& staging) const {
    std::error_code error;
    const fs::space_info space = fs::space(staging.PathOf(""), error);
    const auto needed = static_cast<uint64_t>(result.dense_bytes + result.stored_bytes);
    if (error || space.available >= needed) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s would take %.1f MB, and the disk has %.1f MB left", options_.destination,
        static_cast<double>(needed) / 1e6, static_cast<double>(space.available) / 1e6));
  }

  absl::Status EncodeExperts(const ExpertFormat& format, EncodedWriter& writer) {
    return VisitExperts(kEncoding, [&](cache::ExpertKey key, std::span<const std::byte> blob) {
      const auto encoded = ExpertScratch(ScratchPurpose::kTarget, format.blob_bytes());
      if (!encoded.ok()) return encoded.status();
      if (!backend::EncodeBf12(plain_, blob, format, *encoded)) {
        return absl::DataLossError(absl::StrCat(source_.directory(), ": expert ", key.expert,
                                                " of layer ", key.layer,
                                                " changed while it was converted"));
      }
      return writer.WriteExpert(key, *encoded);
    });
  }

  const Checkpoint& source_;
  const ConvertOptions& options_;
  const std::vector<cache::ExpertKey> keys_;
  const ExpertFormat plain_;
  const int64_t total_bytes_;
  const int threads_;
};

}  // namespace

absl::StatusOr<ConvertResult> ConvertCheckpoint(const Checkpoint& source,
                                                const ConvertOptions& options) {
  return Converter(source, options).Run();
}

}  // namespace moed::model
