// A served model without weights: a demo-sized description, the real tokenizer and template of the
// demo checkpoint, and an engine if the test gives it a runner.
#pragma once

#include <memory>

#include "server/served_model.h"

namespace moed::server {

// Vocabulary 2048, context 64.
std::unique_ptr<ServedModel> DescribedModel();
// The same with tokenizer and template.
std::unique_ptr<ServedModel> TextModel();

}  // namespace moed::server
