// VRRP advertisements as bytes: version 3 over IPv4 and IPv6 (RFC 9568, 5), version 2 over IPv4 (RFC 3768,
// 5). Strict: what is not exactly right is discarded, with a reason.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "routing/gateway_election.hpp"

namespace fabric::daemon {

/// Reasons to discard what was received, each with a text for people.
#define FABRIC_VRRP_DISCARDS(X)                                                    \
  X(hop_limit, "its TTL or hop limit is not 255, so that it may come from afar")   \
  X(destination, "it was not sent to VRRP's group")                                \
  X(source, "its source is not an address of one router")                          \
  X(truncated, "it is shorter than it says")                                       \
  X(trailing, "there is more than it says")                                        \
  X(version, "its version is not 2 or 3, or not one for this address family")      \
  X(type, "it is not an advertisement")                                            \
  X(vrid_zero, "virtual router ID 0")                                              \
  X(no_address, "it has no address")                                               \
  X(interval_zero, "its interval is 0")                                            \
  X(authentication, "version 2 with authentication, which RFC 3768 has abolished") \
  X(checksum, "its checksum is wrong")

enum class VrrpDiscard : std::uint8_t {
#define X(name, text) name,
  FABRIC_VRRP_DISCARDS(X)
#undef X
};
inline constexpr std::size_t kVrrpDiscards = 0
#define X(name, text) +1
    FABRIC_VRRP_DISCARDS(X)
#undef X
    ;
const char* name_of(VrrpDiscard reason);
const char* text_of(VrrpDiscard reason);

/// How the checksum of version 3 over IPv4 is computed. Everywhere else there is only one way.
enum class VrrpChecksum : std::uint8_t {
  pseudo,   ///< with a pseudo-header (RFC 5798 as keepalived and FRR read it)
  message,  ///< over the message only (RFC 9568, 5.2.8)
};

struct VrrpPacket {
  std::uint8_t version = 3;
  std::uint8_t vrid = 1;
  std::uint8_t priority = 100;
  routing::Centiseconds interval{100};
  std::vector<routing::IpAddress> addresses;  ///< of one family
  VrrpChecksum checksum = VrrpChecksum::pseudo;
  bool operator==(const VrrpPacket&) const = default;
};

/// A packet as the kernel gives it: protocol 112, without the IP header.
struct VrrpDatagram {
  routing::IpAddress source, destination;
  int hop_limit = 0;  ///< TTL
  std::span<const std::byte> payload;
};

routing::IpAddress vrrp_group(bool ipv4);  ///< 224.0.0.18, ff02::12

std::variant<VrrpPacket, VrrpDiscard> decode_vrrp(const VrrpDatagram& datagram);

/// The payload of an IP packet from `source` to the group. Version 2: the interval is in whole
/// seconds, 1..255.
std::vector<std::byte> encode_vrrp(const VrrpPacket& packet, const routing::IpAddress& source);

/// The one's complement sum of RFC 1071, folded and inverted; of whole bytes, an odd one padded with 0.
std::uint16_t internet_checksum(std::span<const std::byte> bytes);
/// With the pseudo-header of IPv4 or IPv6 in front.
std::uint16_t internet_checksum(const routing::IpAddress& source, const routing::IpAddress& destination,
                                std::uint8_t protocol, std::span<const std::byte> bytes);

}  // namespace fabric::daemon
