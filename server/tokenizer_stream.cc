#include "server/tokenizer_stream.h"

namespace moed::server {
namespace {

constexpr size_t kChunkBytes = 64 << 10;

}  // namespace

void TokenizerStream::WriteNext() {
  chunk_.set_data(bundle_.zip.substr(written_, kChunkBytes));
  written_ += chunk_.data().size();
  if (written_ == bundle_.zip.size()) chunk_.set_sha256(bundle_.sha256);
  StartWrite(&chunk_);
}

void TokenizerStream::OnWriteDone(bool ok) {
  if (!ok) {
    Finish(grpc::Status::CANCELLED);
  } else if (written_ == bundle_.zip.size()) {
    Finish(grpc::Status::OK);
  } else {
    WriteNext();
  }
}

}  // namespace moed::server
