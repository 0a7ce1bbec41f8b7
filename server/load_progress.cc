#include "server/load_progress.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace moed::server {
namespace {

constexpr absl::Duration kRedrawInterval = absl::Milliseconds(100);
constexpr absl::Duration kLogInterval = absl::Seconds(5);
constexpr int kBarWidth = 30;

}  // namespace

std::string DescribeProgress(int64_t bytes_done, int64_t bytes_total, absl::Duration elapsed) {
  const double done_gb = static_cast<double>(bytes_done) / 1e9;
  const double total_gb = static_cast<double>(bytes_total) / 1e9;
  const double rate = done_gb / std::max(absl::ToDoubleSeconds(elapsed), 1e-3);
  const double percent = bytes_total > 0 ? 100 * done_gb / total_gb : 100;
  std::string text =
      absl::StrFormat("%.1f of %.1f GB (%.0f %%), %.2f GB/s", done_gb, total_gb, percent, rate);
  if (rate > 0) absl::StrAppendFormat(&text, ", %.0f s left", (total_gb - done_gb) / rate);
  return text;
}

LoadProgressDisplay::LoadProgressDisplay(std::string model)
    : model_(std::move(model)),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(absl::Now()),
      last_shown_(start_) {}

LoadProgressDisplay::~LoadProgressDisplay() {
  if (drawn_) std::fputc('\n', stderr);
}

void LoadProgressDisplay::Update(int64_t bytes_done, int64_t bytes_total) {
  const absl::Time now = absl::Now();
  const bool last = bytes_done >= bytes_total;
  if (now - last_shown_ < (terminal_ ? kRedrawInterval : kLogInterval) && !(last && drawn_)) return;
  last_shown_ = now;
  const std::string text = DescribeProgress(bytes_done, bytes_total, now - start_);
  if (!terminal_) {
    spdlog::info("loading {}: {}", model_, text);
    return;
  }
  const int64_t filled = bytes_total > 0 ? kBarWidth * bytes_done / bytes_total : kBarWidth;
  const std::string bar =
      std::string(filled, '#') + std::string(std::max<int64_t>(kBarWidth - filled, 0), '.');
  absl::FPrintF(stderr, "\r%s [%s] %s\033[K", model_, bar, text);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace moed::server
