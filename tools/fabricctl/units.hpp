// Figures as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace fabric::tools {

/// "100 Gbit/s", "2.5 Gbit/s"; "-" for 0.
std::string show_rate(std::uint64_t bits_per_second);
/// "12.3 us", "4.56 ms", "7.8 s".
std::string show_microseconds(double microseconds);
/// "now", "12 s", "3 min 12 s", "5 h 1 min", "2 d 3 h".
std::string show_age(double seconds);
/// "just now", "12 s ago".
std::string show_ago(double seconds);
/// "1 hop", "2 hops".
std::string show_count(std::uint64_t number, const std::string& what);

}  // namespace fabric::tools
