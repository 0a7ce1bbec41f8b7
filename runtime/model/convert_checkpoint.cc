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
    const absl::StatusOr<Bf12Survey> survey = MeasureExperts();
    if (!survey.ok()) return survey.status();
    const absl::StatusOr<ExpertFormat> format = ChooseFormat(*survey);
    if (!format.ok()) return format.status();
    ConvertResult result = {
        .format = *format,
        .num_experts = static_cast<int64_t>(keys_.size()),
        .bf16_bytes = total_bytes_,
        .stored_bytes = static_cast<int64_t>(keys_.size() * format->blob_bytes()),
        .survey = *survey};
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

  absl::StatusOr<Bf12Survey> MeasureExperts() const {
    Progress progress(options_, kMeasuring, total_bytes_);
    return SurveyExperts(source_.experts(), keys_, threads_,
                         [&] { return progress.Add(static_cast<int64_t>(plain_.blob_bytes())); });
  }

  absl::StatusOr<ExpertFormat> ChooseFormat(const Bf12Survey& survey) const {
    absl::StatusOr<ExpertFormat> format = Bf12WithExactRoom(plain_, survey);
    const std::string why = format.ok()
                                ? WhyBf12DoesNotPay(*format, survey, options_.max_stored_ratio)
                                : std::string(format.status().message());
    if (why.empty()) return format;
    return absl::FailedPreconditionError(
        absl::StrCat(source_.directory(), ": its experts stay bf16: ", why));
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

  absl::Status EncodeExperts(const ExpertFormat& format, EncodedWriter& writer) const {
    Progress progress(options_, kEncoding, total_bytes_);
    return ForEachExpert(keys_, threads_, [&](cache::ExpertKey key) {
      const auto blob = ExpertScratch(ScratchPurpose::kSource, plain_.blob_bytes());
      const auto encoded = ExpertScratch(ScratchPurpose::kTarget, format.blob_bytes());
      if (!blob.ok()) return blob.status();
      if (!encoded.ok()) return encoded.status();
      absl::Status status = source_.experts().Read(key, {}, *blob);
      if (!status.ok()) return status;
      if (!backend::EncodeBf12(plain_, *blob, format, *encoded)) {
        return absl::DataLossError(absl::StrCat(source_.directory(), ": expert ", key.expert,
                                                " of layer ", key.layer,
                                                " changed while it was converted"));
      }
      status = writer.WriteExpert(key, *encoded);
      return status.ok() ? progress.Add(static_cast<int64_t>(plain_.blob_bytes())) : status;
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
