#include "server/submit.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/time/time.h"
#include "server/grpc_status.h"

namespace moed::server {
namespace {

// Long enough for some of the queue to leave, short enough not to idle a freed place.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

}  // namespace

absl::Status Submit(const ServedModel& model, const grpc::CallbackServerContext& context,
                    engine::Request request, std::shared_ptr<engine::OutputSink> sink) {
  request.deadline = absl::FromChrono(context.deadline());
  request.sink = std::move(sink);
  const std::string id = request.id;
  const absl::Status status = PublicStatus(id, model.engine->Submit(std::move(request)));
  if (absl::IsResourceExhausted(status)) return WithRetryDelay(status, kRetryDelay);
  return status;
}

absl::Status PublicStatus(const std::string& request_id, const absl::Status& status) {
  absl::Status shown = HideInternals(status);
  if (shown != status) spdlog::warn("request {}: {}", request_id, status.ToString());
  return shown;
}

}  // namespace moed::server
