// The Ethernet frames that a gateway sends by itself: advertisements, announcements, probes; and the answers
// to probes. Bytes only; lan_port.* sends them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "routing/gateway_election.hpp"

namespace fabric::daemon {

using MacAddress = std::array<std::uint8_t, 6>;
using EthernetFrame = std::vector<std::byte>;

/// 00:00:5e:00:01:VRID, 00:00:5e:00:02:VRID (RFC 9568, 7.3).
MacAddress virtual_mac(bool ipv4, std::uint8_t vrid);
/// The link-local address that belongs to a MAC address (RFC 4291, appendix A).
routing::IpAddress link_local(const MacAddress& mac);

/// An IP packet with this payload of protocol 112, from `source` to VRRP's group, TTL or hop limit 255.
EthernetFrame vrrp_frame(const MacAddress& mac, const routing::IpAddress& source,
                         std::span<const std::byte> payload);

/// Gratuitous ARP request (RFC 9568, 8.1.2), or unsolicited neighbour advertisement with R and O (8.2.2).
EthernetFrame announcement(const MacAddress& mac, const routing::IpAddress& address);

/// ARP request, or neighbour solicitation, for `target`.
EthernetFrame address_request(const MacAddress& mac, const routing::IpAddress& source,
                              const routing::IpAddress& target);

/// Whose address is told by an ARP packet (behind the Ethernet header) that is a reply.
std::optional<routing::IpAddress> arp_reply_sender(std::span<const std::byte> packet);
/// Whose address is told by an ICMPv6 message that is a solicited neighbour advertisement.
std::optional<routing::IpAddress> neighbour_advertisement_target(std::span<const std::byte> message);

}  // namespace fabric::daemon
