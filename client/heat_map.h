// One row of moedctl's picture of a layer: a cell for each expert or group of experts, by how much
// it was used and whether it is resident. Pure.
#pragma once

#include <string>

#include "client/expert_rates.h"

namespace moed::client {

struct HeatMapStyle {
  int columns = 64;    // cells at most; more experts share cells
  bool color = false;  // 256-colour escape sequences
};

// A layer's cells. Resident experts are bars that grow with their share of the layer's tokens; the
// others are points, and in colour red.
std::string HeatMapRow(const LayerRates& layer, const HeatMapStyle& style);
// Explains the cells; `experts` a layer.
std::string HeatMapLegend(int experts, const HeatMapStyle& style);

}  // namespace moed::client
