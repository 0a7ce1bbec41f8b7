// Closes a TCP port of this process from below the library that serves it. Used at the end of a
// drain: gRPC answers CANCELLED to a call that meets a server on its way down, which a client must
// take for its own; of a closed connection it says UNAVAILABLE, which is tried elsewhere.
#pragma once

namespace moed::server {

// The listening socket first, so that none comes back, then all connections to it; bytes that were
// written still arrive. Who owns the sockets finds them at their end and closes them.
void SeverConnections(int port);

}  // namespace moed::server
