// From the runtime to the wire: results written into messages that the caller reuses. Free
// functions without state; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "proto/moed/v1/experts.pb.h"
#include "proto/moed/v1/inference.pb.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/request.h"
#include "server/served_model.h"

namespace moed::server {

void AppendTokens(std::span<const engine::TokenWithLogprobs> tokens, bool with_logprobs,
                  google::protobuf::RepeatedPtrField<v1::Token>* messages);

// `logprobs`: one entry per prompt token after `first_token`, which has no probability of its own.
void FillPromptLogprobs(int32_t first_token,
                        std::span<const std::vector<model::TokenLogprob>> logprobs,
                        v1::PromptLogprobs* message);

void FillSequenceFinish(const engine::SequenceFinish& finish, v1::SequenceFinish* message);
void FillUsage(const engine::Usage& usage, v1::Usage* message);
void FillModel(const ServedModel& model, v1::GetModelResponse* message);

// Per layer with a router.
void FillExpertStats(const ServedModel& model, const model::ExpertSnapshot& snapshot,
                     bool per_expert, v1::ExpertStats* message);
void FillServingStats(const engine::EngineSnapshot& snapshot, double uptime_seconds,
                      v1::ServingStats* message);

}  // namespace moed::server
