// libcrypto.so for civetweb, which loads OpenSSL by that name: it needs the library that the rest
// of the program is linked with, whether or not a development package is there.
extern "C" void MoedCryptoNames() {}
