// libssl.so for civetweb, which loads OpenSSL by that name and was built for version 1.1 in Debian
// 12: version 3, which this stands before, renamed one of the functions that it calls.
#include <openssl/ssl.h>

#undef SSL_get_peer_certificate

extern "C" {

X509* SSL_get_peer_certificate(const SSL* ssl) { return SSL_get1_peer_certificate(ssl); }

// What needs this library calls it, so that the linker keeps it.
void MoedSslNames() {}
}
