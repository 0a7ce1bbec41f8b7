#include "server/zip_archive.h"

#include <array>
#include <utility>

namespace moed::server {
namespace {

// Records and fields as in PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kDirectoryHeader = 0x02014b50;
constexpr uint32_t kEndOfDirectory = 0x06054b50;
constexpr uint16_t kVersion = 20;  // 2.0
constexpr uint16_t kStored = 0;
constexpr uint16_t kTime = 0;           // 00:00
constexpr uint16_t kDate = 1 << 5 | 1;  // 1 January 1980, the epoch of zip

void Put16(uint16_t value, std::string* out) {
  out->push_back(static_cast<char>(value & 0xff));
  out->push_back(static_cast<char>(value >> 8));
}

void Put32(uint32_t value, std::string* out) {
  Put16(static_cast<uint16_t>(value & 0xffff), out);
  Put16(static_cast<uint16_t>(value >> 16), out);
}

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table = {};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320 : 0);
    table[byte] = crc;
  }
  return table;
}

// CRC-32 of ISO 3309, reflected.
uint32_t Crc32(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = MakeCrcTable();
  uint32_t crc = 0xffffffff;
  for (char c : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

// What the header of a file and its entry in the directory share.
void PutCommonFields(std::string_view name, std::string_view contents, std::string* out) {
  Put16(kVersion, out);
  Put16(0, out);  // flags
  Put16(kStored, out);
  Put16(kTime, out);
  Put16(kDate, out);
  Put32(Crc32(contents), out);
  Put32(static_cast<uint32_t>(contents.size()), out);  // stored
  Put32(static_cast<uint32_t>(contents.size()), out);  // unpacked
  Put16(static_cast<uint16_t>(name.size()), out);
  Put16(0, out);  // extra field
}

}  // namespace

void ZipArchive::Add(std::string_view name, std::string_view contents) {
  const auto offset = static_cast<uint32_t>(files_.size());
  Put32(kLocalHeader, &files_);
  PutCommonFields(name, contents, &files_);
  files_ += name;
  files_ += contents;

  Put32(kDirectoryHeader, &directory_);
  Put16(kVersion, &directory_);  // made by
  PutCommonFields(name, contents, &directory_);
  Put16(0, &directory_);  // comment
  Put16(0, &directory_);  // disk
  Put16(0, &directory_);  // internal attributes
  Put32(0, &directory_);  // external attributes
  Put32(offset, &directory_);
  directory_ += name;
  ++num_files_;
}

std::string ZipArchive::Finish() && {
  const auto directory_offset = static_cast<uint32_t>(files_.size());
  const auto directory_bytes = static_cast<uint32_t>(directory_.size());
  std::string archive = std::move(files_) + directory_;
  Put32(kEndOfDirectory, &archive);
  Put16(0, &archive);  // this disk
  Put16(0, &archive);  // the directory's disk
  Put16(num_files_, &archive);
  Put16(num_files_, &archive);
  Put32(directory_bytes, &archive);
  Put32(directory_offset, &archive);
  Put16(0, &archive);  // comment
  return archive;
}

}  // namespace moed::server
