// Numbers for people.
#pragma once

#include <string>

namespace moed::client {

// "1.2 GB": powers of 1000, three digits.
std::string Bytes(double bytes);
// "12.3k" from 10 000 up.
std::string Count(double count);
// "87.5 %", or "-" when there is no whole.
std::string Percent(double part, double whole);

}  // namespace moed::client
