// config.json and generation_config.json: any bytes are parsed or refused, and an accepted config
// can be worked with.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "runtime/model/dense_shape.h"
#include "runtime/model/generation_config.h"
#include "runtime/model/model_config.h"
#include "runtime/model/rope_frequencies.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t bytes) {
  const std::string_view text(reinterpret_cast<const char*>(input), bytes);
  (void)moed::model::ParseGenerationConfig(text, "fuzz");
  (void)moed::model::ParseEosTokens(text, "fuzz");
  const auto config = moed::model::ParseModelConfig(text, "fuzz");
  if (!config.ok()) return 0;
  for (float frequency : moed::model::ComputeInverseFrequencies(config->rope)) {
    if (!std::isfinite(frequency)) std::abort();
  }
  for (int layer = 0; layer < config->num_layers(); ++layer) {
    for (int role = 0; role < moed::model::kNumDenseRoles; ++role) {
      const auto shape =
          moed::model::DenseShape(*config, static_cast<moed::model::DenseRole>(role), layer);
      if (!shape.has_value()) continue;
      for (int64_t extent : *shape) {
        if (extent <= 0) std::abort();
      }
    }
  }
  return 0;
}
