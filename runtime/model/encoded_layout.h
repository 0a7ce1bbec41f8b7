// How a converted checkpoint differs from any other: the experts of a layer are one tensor of
// encoded blobs [E, bytes of a blob] U8, in a safetensors file of their own whose metadata says
// how they are encoded, with a checksum of every tile of every blob. Dense tensors have their usual
// names and a checksum each. Written by convert_checkpoint.cc, read by encoded_expert_source.cc.
// Constant data.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace moed::model {

// Of everything described here and of the encoding itself (backend/bf12.h). A reader of another
// version refuses the file.
inline constexpr char kEncodedVersion[] = "1";

// Keys of the metadata.
inline constexpr char kEncodedVersionKey[] = "moed.version";
inline constexpr char kEncodedFormatKey[] = "moed.expert_format";       // "bf12"
inline constexpr char kEncodedEscapesKey[] = "moed.bf12.tile_escapes";  // room in a tile's list

inline constexpr char kEncodedDenseFile[] = "model-dense.safetensors";

inline std::string EncodedExpertsFile(int layer) {
  return absl::StrFormat("model-experts-%05d.safetensors", layer);
}
inline std::string EncodedExpertsName(int layer) {
  return absl::StrCat("moed.layers.", layer, ".experts");
}

}  // namespace moed::model
