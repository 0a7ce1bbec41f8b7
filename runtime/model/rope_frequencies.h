// Inverse frequencies of rotary position embeddings, scaled as a config asks for. Pure functions.
#pragma once

#include <vector>

#include "runtime/model/model_config.h"

namespace moed::model {

// The rotary_dims / 2 inverse frequencies of `rope`: pair j at position p is turned by p * f[j].
// default: theta^(-2j/R); linear: that over factor; llama3: by wavelength (arXiv 2407.21783);
// yarn: a ramp between interpolated and original frequencies (arXiv 2309.00071).
std::vector<float> ComputeInverseFrequencies(const RopeConfig& rope);

// Yarn's factor on cos and sin when a config gives none: 0.1 * scale * ln(factor) + 1, or 1 if
// `factor` <= 1.
double YarnAttentionFactor(double factor, double scale);

}  // namespace moed::model
