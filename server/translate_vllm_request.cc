#include "server/translate_vllm_request.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"
#include "server/translate_request.h"

namespace moed::server {
namespace {

namespace vllm_api = vllm::grpc::engine;

absl::Status Unsupported(absl::string_view field, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat(field, ": this engine has no ", what));
}

absl::Status CheckSupported(const vllm_api::GenerateRequest& wire) {
  if (wire.sampling_params().constraint_case() != vllm_api::SamplingParams::CONSTRAINT_NOT_SET) {
    return Unsupported("sampling_params.constraint", "constrained decoding");
  }
  if (wire.has_mm_inputs() || wire.has_media_refs() || wire.extra_mm_inputs_size() > 0) {
    return Unsupported("mm_inputs", "multimodal inputs");
  }
  if (wire.has_kv_transfer_params() || wire.has_kv_transfer_params_json()) {
    return Unsupported("kv_transfer_params_json", "KV transfer");
  }
  if (wire.data_parallel_rank() != 0) {
    return InvalidField("data_parallel_rank",
                        absl::StrCat("is ", wire.data_parallel_rank(), "; there is one rank, 0"));
  }
  return absl::OkStatus();
}

// Ids above the range become -1, which no vocabulary has.
int32_t ToTokenId(uint32_t id) {
  return id <= uint32_t{std::numeric_limits<int32_t>::max()} ? static_cast<int32_t>(id) : -1;
}

void CopySampling(const vllm_api::SamplingParams& wire, v1::SamplingParams* params) {
  params->set_temperature(wire.has_temperature() ? wire.temperature() : 1);
  params->set_top_k(ToTokenId(wire.top_k()));
  params->set_top_p(wire.top_p() == 0 ? 1 : wire.top_p());
  params->set_min_p(wire.min_p());
  params->set_repetition_penalty(wire.repetition_penalty() == 0 ? 1 : wire.repetition_penalty());
  params->set_presence_penalty(wire.presence_penalty());
  params->set_frequency_penalty(wire.frequency_penalty());
  if (wire.has_seed()) params->set_seed(static_cast<uint64_t>(int64_t{wire.seed()}));
  *params->mutable_logit_bias() = wire.logit_bias();
  if (wire.has_logprobs()) params->set_logprobs(wire.logprobs());
  if (wire.has_prompt_logprobs()) params->set_prompt_logprobs(wire.prompt_logprobs());
}

void CopyStopping(const vllm_api::SamplingParams& wire, const ServedModel& model,
                  v1::StopConditions* stopping) {
  stopping->set_max_tokens(wire.has_max_tokens() ? int64_t{wire.max_tokens()}
                                                 : model.description.max_model_len);
  stopping->set_min_tokens(wire.min_tokens());
  *stopping->mutable_stop() = wire.stop();
  for (uint32_t id : wire.stop_token_ids()) stopping->add_stop_token_ids(ToTokenId(id));
  stopping->set_ignore_eos(wire.ignore_eos());
  stopping->set_include_stop_text(wire.include_stop_str_in_output());
}

// How many of the prompt's last tokens are used.
absl::StatusOr<int64_t> TokensToKeep(const vllm_api::GenerateRequest& wire,
                                     const ServedModel& model) {
  const int64_t all = wire.tokenized().input_ids_size();
  if (!wire.sampling_params().has_truncate_prompt_tokens()) return all;
  const int64_t keep = wire.sampling_params().truncate_prompt_tokens();
  if (wire.has_text() || keep == 0 || keep < -1) {
    return InvalidField("sampling_params.truncate_prompt_tokens",
                        "must be -1 or from 1 up, with tokenized input");
  }
  return std::min(all, keep == -1 ? model.description.max_model_len - 1 : keep);
}

}  // namespace

absl::StatusOr<v1::GenerateRequest> ToMoedRequest(const vllm_api::GenerateRequest& wire,
                                                  const ServedModel& model) {
  if (absl::Status status = CheckSupported(wire); !status.ok()) return status;
  const absl::StatusOr<int64_t> keep = TokensToKeep(wire, model);
  if (!keep.ok()) return keep.status();
  v1::GenerateRequest request;
  if (wire.has_text()) {
    request.set_text(wire.text());
  } else if (wire.has_tokenized()) {
    const auto& ids = wire.tokenized().input_ids();
    v1::TokenIds* tokens = request.mutable_tokens();
    tokens->mutable_ids()->Reserve(static_cast<int>(*keep));
    for (auto id = ids.end() - *keep; id != ids.end(); ++id) tokens->add_ids(ToTokenId(*id));
  }
  CopySampling(wire.sampling_params(), request.mutable_sampling());
  CopyStopping(wire.sampling_params(), model, request.mutable_stopping());
  const uint32_t n = wire.sampling_params().n();
  request.set_n(n == 0 ? 1 : ToTokenId(n));
  request.set_return_token_ids_only(true);
  request.set_skip_special_tokens(wire.sampling_params().skip_special_tokens());
  request.set_request_id(wire.request_id());
  return request;
}

absl::StatusOr<engine::Request> ToEngineRequest(const vllm_api::GenerateRequest& wire,
                                                const ServedModel& model) {
  const absl::StatusOr<v1::GenerateRequest> request = ToMoedRequest(wire, model);
  if (!request.ok()) return request.status();
  return ToEngineRequest(*request, model);
}

}  // namespace moed::server
