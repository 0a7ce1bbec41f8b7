#include "runtime/model/rope_config.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/model/rope_frequencies.h"

namespace moed::model {
namespace {

constexpr IntRange kPositions = {1, int64_t{1} << 31};
constexpr NumberRange kTheta = {1.001, 1e15};
constexpr NumberRange kFactor = {1, 1e6};
constexpr NumberRange kRotations = {1e-3, 1e6};
constexpr NumberRange kPositive = {1e-6, 1e6};

// The object that holds the scaling, without fields if there is none.
JsonFields ScalingOf(JsonFields& config) {
  if (config.Has("rope_scaling")) return config.Object("rope_scaling");
  JsonFields parameters = config.Object("rope_parameters");
  if (!parameters.Has("full_attention")) return parameters;
  JsonFields full = parameters.Object("full_attention");
  if (parameters.Has("sliding_attention") && !parameters.Object("sliding_attention").SameAs(full)) {
    parameters.Fail("rotary parameters that differ by layer type are not supported");
  }
  return full;
}

// From the scaling if it is there, else from the config's top level.
double NumberInEither(JsonFields& scaling, JsonFields& config, std::string_view key,
                      NumberRange range, double absent) {
  return scaling.Number({key}, range, config.Number({key}, range, absent));
}

int64_t OriginalPositions(JsonFields& scaling, JsonFields& config, int64_t max_positions) {
  const int64_t in_scaling =
      scaling.Int({"original_max_position_embeddings"}, kPositions, max_positions);
  return config.Int({"original_max_position_embeddings"}, kPositions, in_scaling);
}

void ReadLlama3(JsonFields& scaling, RopeConfig* rope) {
  rope->factor = scaling.Number({"factor"}, kFactor);
  rope->low_freq_factor = scaling.Number({"low_freq_factor"}, kPositive);
  rope->high_freq_factor = scaling.Number({"high_freq_factor"}, kPositive);
  if (rope->high_freq_factor < rope->low_freq_factor) {
    scaling.Fail("high_freq_factor of the rotary scaling is below low_freq_factor");
  }
}

void ReadYarn(JsonFields& scaling, int64_t max_positions, RopeConfig* rope) {
  const double stretch =
      static_cast<double>(max_positions) / static_cast<double>(rope->original_max_positions);
  rope->factor = scaling.Number({"factor"}, kFactor, stretch);
  rope->beta_fast = scaling.Number({"beta_fast"}, kRotations, 32);
  rope->beta_slow = scaling.Number({"beta_slow"}, kRotations, 1);
  rope->truncate = scaling.Bool("truncate", true);
  const double mscale = scaling.Number({"mscale"}, {0, 1e3}, 0);
  const double mscale_all_dim = scaling.Number({"mscale_all_dim"}, {0, 1e3}, 0);
  const double inferred = mscale > 0 && mscale_all_dim > 0
                              ? YarnAttentionFactor(rope->factor, mscale) /
                                    YarnAttentionFactor(rope->factor, mscale_all_dim)
                              : YarnAttentionFactor(rope->factor, 1);
  rope->attention_factor = scaling.Number({"attention_factor"}, kPositive, inferred);
}

void ReadScaling(JsonFields& scaling, int64_t max_positions, RopeConfig* rope) {
  const std::string type = scaling.String({"rope_type", "type"}, "default");
  if (type == "default") {
    rope->type = RopeType::kDefault;
  } else if (type == "linear") {
    rope->type = RopeType::kLinear;
    rope->factor = scaling.Number({"factor"}, kFactor);
  } else if (type == "llama3") {
    rope->type = RopeType::kLlama3;
    ReadLlama3(scaling, rope);
  } else if (type == "yarn") {
    rope->type = RopeType::kYarn;
    ReadYarn(scaling, max_positions, rope);
  } else {
    scaling.Fail(absl::StrCat("rotary scaling \"", type.substr(0, 40),
                              "\" is not supported; default, linear, llama3 and yarn are"));
  }
}

}  // namespace

RopeConfig ReadRopeConfig(JsonFields& config, int head_dim, int64_t max_positions,
                          double default_theta) {
  JsonFields scaling = ScalingOf(config);
  RopeConfig rope;
  rope.theta = NumberInEither(scaling, config, "rope_theta", kTheta, default_theta);
  const double rotated = NumberInEither(scaling, config, "partial_rotary_factor", {1e-3, 1}, 1);
  rope.rotary_dims = static_cast<int>(head_dim * rotated);
  if (rope.rotary_dims < 2 || rope.rotary_dims % 2 != 0) {
    config.Fail(absl::StrCat("head_dim ", head_dim, " with partial_rotary_factor ", rotated,
                             " rotates ", rope.rotary_dims, " dimensions; it must be even"));
  }
  rope.original_max_positions = OriginalPositions(scaling, config, max_positions);
  ReadScaling(scaling, max_positions, &rope);
  return rope;
}

}  // namespace moed::model
