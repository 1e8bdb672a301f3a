// Numbers with a unit on the command line: 50us, 10Gb, 0.1%.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fabric::tools::lab {

// Each throws Error with what is accepted, where the text is something else.

/// us, ms, s.
std::chrono::microseconds parse_duration(const std::string& text);
/// Mb, Gb, of 10^6 and 10^9 bits a second: megabits a second, at least 1.
std::uint64_t parse_rate(const std::string& text);
/// %, or ppm: parts of a million, at most all.
std::uint32_t parse_share(const std::string& text);

}  // namespace fabric::tools::lab
