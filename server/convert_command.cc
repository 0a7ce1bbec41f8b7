#include "server/convert_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <iostream>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/convert_checkpoint.h"
#include "server/load_progress.h"

namespace moed::server {
namespace {

constexpr absl::Duration kRedrawInterval = absl::Milliseconds(200);

volatile std::sig_atomic_t interrupted = 0;

// A signal ends the conversion, which then removes what it wrote; a limit of file sizes is an error
// of writing like a full disk.
void CatchSignals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    std::signal(signal, [](int) { interrupted = 1; });
  }
  std::signal(SIGXFSZ, SIG_IGN);
}

// "12.3 GB", or of small models "4.56 MB".
std::string Size(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  return value < 1e9 ? absl::StrFormat("%.2f MB", value / 1e6)
                     : absl::StrFormat("%.1f GB", value / 1e9);
}

// What is listed beside the encoded weights, and which expert sets the room for it in all others.
std::string Escapes(const model::Bf12Survey& survey) {
  if (survey.listed_escapes == 0) return "no listed escapes";
  return absl::StrFormat("%d listed escapes, at most %d in 32 neurons (expert %d of layer %d)",
                         survey.listed_escapes, survey.most_in_tile, survey.wildest.expert,
                         survey.wildest.layer);
}

// One line on a terminal, drawn over and over.
class ProgressLine {
 public:
  ~ProgressLine() {
    if (drawn_) absl::FPrintF(stderr, "\n");
  }

  void Update(const char* what, int64_t bytes_done, int64_t bytes_total) {
    const absl::Time now = absl::Now();
    if (what != what_) {
      what_ = what;
      start_ = now;
    }
    const bool last = bytes_done == bytes_total;
    if (!terminal_ || (now - last_drawn_ < kRedrawInterval && !last)) return;
    last_drawn_ = now;
    drawn_ = true;
    absl::FPrintF(stderr, "\r%s: %s\033[K", what,
                  DescribeProgress(bytes_done, bytes_total, now - start_));
    std::fflush(stderr);
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) == 1;
  const char* what_ = nullptr;
  absl::Time start_;
  absl::Time last_drawn_ = absl::InfinitePast();
  bool drawn_ = false;
};

absl::Status Convert(const std::string& source, model::ConvertOptions options) {
  const auto checkpoint = model::OpenCheckpoint({.directory = source});
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<model::ConvertResult> result;
  const absl::Time start = absl::Now();
  {
    ProgressLine line;
    options.progress = [&line](const char* what, int64_t bytes_done, int64_t bytes_total) {
      line.Update(what, bytes_done, bytes_total);
    };
    options.cancelled = [] { return interrupted != 0; };
    result = model::ConvertCheckpoint(**checkpoint, options);
  }
  if (!result.ok()) return result.status();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  std::cout << absl::StrFormat(
      "%s: %d experts take %s in bf12, %.1f %% of %s in bf16, bit for bit the same; %s; %s of "
      "dense "
      "weights as they were\n"
      "%.1f s, %.2f GB/s of bf16 experts, read twice\n",
      options.destination, result->num_experts, Size(result->stored_bytes),
      100 * result->format.stored_ratio(), Size(result->bf16_bytes), Escapes(result->survey),
      Size(result->dense_bytes), seconds,
      static_cast<double>(result->bf16_bytes) / 1e9 / std::max(seconds, 1e-9));
  return absl::OkStatus();
}

}  // namespace

int RunConvert(const std::vector<std::string>& arguments) {
  std::string source;
  model::ConvertOptions options;
  CLI::App app("Writes a checkpoint anew with its experts in lossless 12 bits (bf12).",
               "moed convert");
  app.add_option("SOURCE", source, "Checkpoint directory: config.json, *.safetensors")->required();
  app.add_option("DESTINATION", options.destination, "Folder to write; must not exist")->required();
  app.add_option("--threads", options.threads, "Threads that encode; 0: as many as CPUs [0]")
      ->check(CLI::Range(0, 1024));
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as parse wants it
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  CatchSignals();
  const absl::Status status = Convert(source, std::move(options));
  if (status.ok()) return 0;
  std::cerr << "moed convert: " << status.message() << std::endl;
  return 1;
}

}  // namespace moed::server
