// PathRecords, and the selectors of MTU, rate and lifetime that others have too. See paths.cpp.
#pragma once

#include <optional>

#include "fabricd/subnet/administration/multicast.hpp"
#include "fabricd/subnet/administration/query.hpp"

namespace fabric::daemon::subnet::administration {

/// Answers to PathRecord: between ports, and to multicast groups.
[[nodiscard]] Result paths(const Query& query, const Multicast& groups);
/// Answers to MultiPathRecord, which are PathRecords.
[[nodiscard]] Result multi_paths(const Query& query);

/// What a template says of a quantity: selector (greater, less, exactly, largest) and value in one byte.
struct Wish {
  std::uint8_t selector_and_value = 0;
  bool stated = false;  ///< both components are in the mask
};
/// The value to give where `present` is what there is; nothing where the wish cannot be met.
[[nodiscard]] std::optional<std::uint8_t> choose_mtu(std::uint8_t present, Wish wish);
[[nodiscard]] std::optional<std::uint8_t> choose_rate(std::uint8_t present, Wish wish);
/// Whether its value is one, where it matters.
[[nodiscard]] bool makes_sense(Wish wish, bool (*is_value)(std::uint8_t));
[[nodiscard]] bool is_mtu(std::uint8_t code);
[[nodiscard]] bool is_rate(std::uint8_t code);
/// Place in the order of rates, which is not that of their codes; 0 for what is none.
[[nodiscard]] std::uint8_t rate_order(std::uint8_t code);

/// Code of a rate (specification, table of PathRecord) for a link's width and speed; 0 where there is none.
[[nodiscard]] std::uint8_t rate_code(const verbs::PortInfo& info);

constexpr std::uint8_t exactly(std::uint8_t value) {
  return static_cast<std::uint8_t>(2U << 6 | value);
}
/// 4.096 us * 2^10 = 4.2 ms.
inline constexpr std::uint8_t kPacketLifetime = 10;

}  // namespace fabric::daemon::subnet::administration
