// What the forwarder must know of an IP packet: where it goes, and which flow it belongs to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "fabricd/addresses.hpp"

namespace fabric::daemon {

struct PacketSummary {
  enum class Kind : std::uint8_t { not_ip, unicast, multicast } kind = Kind::not_ip;  ///< broadcast too
  std::uint8_t version = 0;                                                           ///< 4 or 6
  IpAddress destination{};
  /// Of addresses, protocol and, where the packet has them, ports (RFC 6437 section 2 lists the same five).
  /// All fragments of a datagram have the same: that of addresses and protocol.
  std::uint32_t flow_hash = 0;
};

/// `packet` begins with the IP header. Never reads beyond it.
PacketSummary summarize(std::span<const std::byte> packet) noexcept;

/// Writes into `out` the "host unreachable" message that answers `packet` (ICMP type 3 code 1, RFC 792 and
/// 1812; ICMPv6 type 1 code 3, RFC 4443), from its destination to its source, and returns its length; 0 where
/// none may be sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e: answers to errors, fragments but the
/// first, sources that are nobody). The message comes from the unreachable address itself, since a kernel
/// drops what arrives from an address of its own. `out` has room for 1280 bytes.
std::size_t build_unreachable(std::span<const std::byte> packet, std::span<std::byte> out) noexcept;

}  // namespace fabric::daemon
