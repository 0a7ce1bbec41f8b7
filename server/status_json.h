// What the status page shows, as JSON. Pure function of snapshots.
#pragma once

#include <string>

#include "server/served_model.h"

namespace moed::server {

// `served` null: the checkpoint is loading. Counters are since the start; the page takes rates.
std::string StatusJson(const ServedModel* served, double uptime_seconds);

}  // namespace moed::server
