// moedctl top: a live view of the experts.

#include <sys/ioctl.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "client/cancel_on_interrupt.h"
#include "client/command.h"
#include "client/expert_rates.h"
#include "client/top_frame.h"

namespace moed::client {
namespace {

struct TopFlags {
  bool once = false;
  double interval_seconds = 1;
};

constexpr char kEnterScreen[] = "\x1b[?1049h\x1b[?25l";
constexpr char kLeaveScreen[] = "\x1b[?25h\x1b[?1049l";
constexpr char kHome[] = "\x1b[H";
constexpr char kClearLine[] = "\x1b[K\n";
constexpr char kClearBelow[] = "\x1b[J";

TopLayout TerminalLayout() {
  TopLayout layout = {.columns = 100, .rows = 40, .color = true};
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    layout.columns = size.ws_col;
    layout.rows = size.ws_row - 1;
  }
  return layout;
}

// Redrawn in place: clearing the screen first would flicker.
void Draw(const std::string& frame) {
  std::string screen = kHome;
  for (const char c : frame) c == '\n' ? screen.append(kClearLine) : screen.append(1, c);
  std::cout << screen << kClearBelow << std::flush;
}

absl::Status PrintOnce(absl::Duration timeout, Client& client) {
  v1::GetExpertStatsRequest request;
  request.set_per_expert(true);
  Call call(timeout);
  const absl::StatusOr<v1::ExpertStats> stats = client.GetExpertStats(request, call);
  if (!stats.ok()) return stats.status();
  std::cout << TopFrame(*stats, RatesBetween(nullptr, *stats), {.columns = 120});
  return absl::OkStatus();
}

absl::Status Watch(double interval_seconds, Client& client) {
  v1::WatchExpertsRequest request;
  request.set_per_expert(true);
  request.set_interval_seconds(interval_seconds);
  std::optional<v1::ExpertStats> before;
  Call call;
  const CancelOnInterrupt interrupt(call);
  std::cout << kEnterScreen;
  const absl::Status status = client.WatchExperts(request, call, [&](const v1::ExpertStats& now) {
    Draw(TopFrame(now, RatesBetween(before ? &*before : nullptr, now), TerminalLayout()));
    before = now;
  });
  std::cout << kLeaveScreen << std::flush;
  return absl::IsCancelled(status) ? absl::OkStatus() : status;
}

}  // namespace

void AddTopCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<TopFlags>();
  CLI::App* command = app.add_subcommand("top", "Watch the experts; Ctrl-C leaves");
  command->add_flag("--once", flags->once, "Print one frame since the server's start, and end");
  command->add_option("--interval", flags->interval_seconds, "Seconds between frames")
      ->check(CLI::Range(0.1, 60.0))
      ->capture_default_str();
  command->callback([&line, flags] {
    line.chosen = [&line, flags](Client& client) {
      return flags->once ? PrintOnce(line.timeout(), client)
                         : Watch(flags->interval_seconds, client);
    };
  });
}

}  // namespace moed::client
