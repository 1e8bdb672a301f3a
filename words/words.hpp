// The words that every part of the project shares: identifiers with a type of their own, so that a LID is
// never taken for a port number. Header only, no dependency. routing/ and verbs/ both use it and do not know
// each other.
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

namespace fabric {

/// A value of type T that converts to nothing else. Compare it, hash it, take it out with value().
template <class Tag, class T>
class Strong {
 public:
  using Value = T;
  constexpr Strong() = default;
  constexpr explicit Strong(T value) : value_(value) {}
  [[nodiscard]] constexpr T value() const { return value_; }
  constexpr auto operator<=>(const Strong&) const = default;

 private:
  T value_{};
};

/// EUI-64 of a host, an adapter or a port, host byte order.
using Guid = Strong<struct GuidTag, std::uint64_t>;
/// InfiniBand local identifier, host byte order; 0 is "none", 1..0xBFFF unicast.
using Lid = Strong<struct LidTag, std::uint16_t>;
/// Queue-pair number, 24 bits.
using Qpn = Strong<struct QpnTag, std::uint32_t>;
/// A cable end of this host: 0, 1, 2 ... over all ports of all adapters, in the order of (node GUID, port
/// number). Not the port number of an adapter, which starts at 1 on each.
using PortIndex = Strong<struct PortIndexTag, std::uint8_t>;
/// A host's number on the ring, 1..kMaxHostIndex; 0 is "none yet". Its LID block is [index << lmc, +2^lmc)
/// and its default address is the index-th of the fabric's network.
using HostIndex = Strong<struct HostIndexTag, std::uint16_t>;

inline constexpr Lid kNoLid{0};
inline constexpr Lid kMaxUnicastLid{0xBFFF};
inline constexpr PortIndex kNoPort{0xFF};
inline constexpr HostIndex kNoHost{0};

/// Time as the protocol cores see it: nanoseconds of a monotonic clock that somebody else reads. Simulations
/// count it from zero, the daemon takes CLOCK_MONOTONIC (std::chrono::steady_clock).
struct Clock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<Clock>;
  static constexpr bool is_steady = true;
};
using TimePoint = Clock::time_point;
using Duration = Clock::duration;

/// "0x0002c90300a1b2c3", as the diagnostic tools print it.
inline std::string to_string(Guid guid) {
  char text[19];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(guid.value()));
  return text;
}

}  // namespace fabric

template <class Tag, class T>
struct std::hash<fabric::Strong<Tag, T>> {
  std::size_t operator()(const fabric::Strong<Tag, T>& strong) const noexcept {
    return std::hash<T>{}(strong.value());
  }
};
