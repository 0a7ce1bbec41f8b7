#include "server/call_log.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "server/grpc_status.h"
#include "server/log.h"
#include "server/trace_context.h"

namespace moed::server {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::InterceptorBatchMethods;

// Calls that nobody need wait for: streams without an end of their own (statistics, reflection),
// and health checks, which come for ever.
bool IsUncounted(absl::string_view method) {
  return absl::StartsWith(method, "/grpc.health.") || absl::EndsWith(method, "/Watch") ||
         absl::EndsWith(method, "/ServerReflectionInfo");
}

// One call. Destroyed with the call's context, after its last operation.
class Observer final : public grpc::experimental::Interceptor {
 public:
  Observer(grpc::experimental::ServerRpcInfo* info, std::shared_ptr<CallCounter> calls)
      : context_(info->server_context()),
        method_(info->method()),
        counted_(!IsUncounted(method_)),
        calls_(std::move(calls)),
        start_(absl::Now()) {
    if (counted_) calls_->Started();
  }

  ~Observer() override {
    LogCall();
    if (counted_) calls_->Ended();
  }

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      trace_ = TraceContextOf(*context_);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      code_ = methods->GetSendStatus().error_code();
      has_code_ = true;
    }
    methods->Proceed();
  }

 private:
  // Health checks come every few seconds for ever and are not worth a line.
  void LogCall() const {
    if (absl::StartsWith(method_, "/grpc.health.")) return;
    const bool failed = has_code_ && IsServerFault(code_);
    LogEvent(failed ? LogLevel::kWarning : LogLevel::kDebug, "call",
             {{"method", method_},
              {"code", has_code_ ? CodeName(code_) : "none"},
              {"milliseconds", absl::StrCat(absl::ToInt64Milliseconds(absl::Now() - start_))},
              {"traceparent", trace_.traceparent},
              {"client_request_id", trace_.request_id}});
  }

  grpc::ServerContextBase* const context_;
  const std::string method_;
  const bool counted_;
  const std::shared_ptr<CallCounter> calls_;
  const absl::Time start_;
  TraceContext trace_;
  grpc::StatusCode code_ = grpc::StatusCode::OK;
  bool has_code_ = false;
};

}  // namespace

void CallCounter::Started() {
  absl::MutexLock lock(&mutex_);
  ++running_;
}

void CallCounter::Ended() {
  absl::MutexLock lock(&mutex_);
  --running_;
  last_end_ = absl::Now();
}

bool CallCounter::WaitUntilIdle(absl::Duration quiet, absl::Duration patience) {
  const absl::Time give_up = absl::Now() + patience;
  absl::MutexLock lock(&mutex_);
  while (absl::Now() < give_up) {
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&none), give_up)) return false;
    const absl::Time quiet_since = last_end_ + quiet;
    if (absl::Now() >= quiet_since) return true;
    const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ > 0; };
    mutex_.AwaitWithDeadline(absl::Condition(&some), std::min(quiet_since, give_up));
  }
  return false;
}

grpc::experimental::Interceptor* CallLog::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* info) {
  return new Observer(info, calls_);
}

}  // namespace moed::server
