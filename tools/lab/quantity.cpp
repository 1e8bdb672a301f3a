#include "tools/lab/quantity.hpp"

#include <cmath>
#include <initializer_list>
#include <utility>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {
namespace {

/// The number times what its unit stands for, rounded; an error where it is not from `least` to `most`.
std::uint64_t parse(const std::string& text, std::initializer_list<std::pair<const char*, double>> units,
                    double least, double most) {
  std::string accepted;
  for (const auto& [unit, factor] : units) accepted += (accepted.empty() ? "" : ", ") + std::string(unit);
  const auto refuse = [&] [[noreturn]] (const std::string& why) {
    throw Error("\"" + text + "\" " + why + " (units: " + accepted + ")");
  };
  std::size_t used = 0;
  double number = 0;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
    refuse("is not a number with a unit");
  }
  for (const auto& [unit, factor] : units) {
    if (text.substr(used) != unit) continue;
    const double value = std::round(number * factor);
    if (!(value >= least && value <= most)) refuse("is too small or too large");
    return static_cast<std::uint64_t>(value);
  }
  refuse("is not a number with a unit");
}

}  // namespace

std::chrono::microseconds parse_duration(const std::string& text) {
  return std::chrono::microseconds(parse(text, {{"us", 1}, {"ms", 1e3}, {"s", 1e6}}, 0, 1e9));
}

std::uint64_t parse_rate(const std::string& text) {
  return parse(text, {{"Mb", 1}, {"Gb", 1e3}}, 1, 1e9);
}

std::uint32_t parse_share(const std::string& text) {
  return static_cast<std::uint32_t>(parse(text, {{"%", 1e4}, {"ppm", 1}}, 0, 1e6));
}

}  // namespace fabric::tools::lab
