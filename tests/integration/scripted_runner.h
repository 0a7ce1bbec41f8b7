// A step runner without weights: tokens are a function of the position, and a test decides when
// steps may run and whether one fails. The engine, scheduler and server around it are the real
// ones.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "runtime/model/heartbeat.h"
#include "runtime/model/step.h"
#include "server/server.h"

namespace moed::server {

class ScriptedRunner final : public model::StepRunner {
 public:
  // The token that follows `position` tokens; never an end token.
  static int32_t TokenAfter(int64_t position) { return static_cast<int32_t>(1 + position % 1000); }

  absl::Status Run(const model::StepInput& input, model::StepResult* result) override;
  int64_t progress() const override { return heartbeat_.beats(); }

  // While closed, steps wait.
  void SetGate(bool open);
  // How long each step takes; no time if never called. It shows progress every 20 ms.
  void SetStepTime(absl::Duration step_time);
  // The next step fails with this.
  void FailWith(const absl::Status& status);

 private:
  model::Heartbeat heartbeat_;
  absl::Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  absl::Duration step_time_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

// A loader of a model named "scripted": 1024 tokens of vocabulary, long contexts, no tokenizer. The
// runner, which must not be used after the server has gone, is put into `*runner`.
ModelLoader ScriptedLoader(ScriptedRunner** runner);

}  // namespace moed::server
