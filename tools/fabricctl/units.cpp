#include "tools/fabricctl/units.hpp"

#include <fmt/format.h>

namespace fabric::tools {

std::string show_rate(std::uint64_t bits_per_second) {
  if (bits_per_second == 0) return "-";
  const auto value = static_cast<double>(bits_per_second);
  if (value >= 1e9) return fmt::format("{:.4g} Gbit/s", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.4g} Mbit/s", value / 1e6);
  return fmt::format("{:.4g} kbit/s", value / 1e3);
}

std::string show_microseconds(double microseconds) {
  if (microseconds < 1000) return fmt::format("{:.1f} us", microseconds);
  if (microseconds < 1'000'000) return fmt::format("{:.2f} ms", microseconds / 1e3);
  return fmt::format("{:.2f} s", microseconds / 1e6);
}

std::string show_age(double seconds) {
  const auto whole = static_cast<std::uint64_t>(seconds < 0 ? 0 : seconds);
  if (whole == 0) return "now";
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} d {} h", whole / 86400, whole / 3600 % 24);
}

std::string show_ago(double seconds) {
  return seconds < 1 ? "just now" : show_age(seconds) + " ago";
}

std::string show_count(std::uint64_t number, const std::string& what) {
  return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s");
}

}  // namespace fabric::tools
