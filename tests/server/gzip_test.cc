#include "server/gzip.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <random>

namespace moed::server {
namespace {

// By zlib's reader, which finds the header by itself.
std::string Gunzip(const std::string& packed, size_t size) {
  z_stream stream = {};
  EXPECT_EQ(inflateInit2(&stream, 15 + 32), Z_OK);
  std::string text(size + 1, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(text.data());
  stream.avail_out = static_cast<uInt>(text.size());
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  text.resize(stream.total_out);
  inflateEnd(&stream);
  return text;
}

TEST(GzipTest, ComesBackAsItWas) {
  std::mt19937 random(1);
  for (const size_t size : {0, 1, 100, 5'000'000}) {
    std::string text(size, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const std::string packed = Gzip(text);
    EXPECT_EQ(packed.substr(0, 2), "\x1f\x8b");
    EXPECT_EQ(Gunzip(packed, size), text);
  }
  EXPECT_LT(Gzip(std::string(100'000, 'a')).size(), 1000u);
}

TEST(GzipTest, IsUsedWhereTheClientTakesIt) {
  for (const char* header :
       {"gzip", "deflate, gzip", "GZIP;q=0.5", "br;q=1, gzip ; q=0.1", "*", "gzip;q=x"}) {
    EXPECT_TRUE(AcceptsGzip(header)) << header;
  }
  for (const char* header : {"", "identity", "gzip;q=0", "gzip; q=0.0, br", "xgzip", "*;q=0"}) {
    EXPECT_FALSE(AcceptsGzip(header)) << header;
  }
}

}  // namespace
}  // namespace moed::server
