// Streams a TokenizerBundle in pieces. Owned by gRPC; deletes itself.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstddef>

#include "proto/smg/common.pb.h"
#include "server/tokenizer_bundle.h"

namespace moed::server {

class TokenizerStream final
    : public grpc::ServerWriteReactor<smg::grpc::common::GetTokenizerChunk> {
 public:
  // `bundle` outlives the server's calls.
  explicit TokenizerStream(const TokenizerBundle& bundle) : bundle_(bundle) { WriteNext(); }

  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void WriteNext();

  const TokenizerBundle& bundle_;
  size_t written_ = 0;
  smg::grpc::common::GetTokenizerChunk chunk_;
};

}  // namespace moed::server
