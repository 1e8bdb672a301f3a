#include "fabricd/gateway/lan_frames.hpp"

#include <algorithm>

#include "fabricd/addresses.hpp"
#include "fabricd/gateway/vrrp_packet.hpp"
#include "routing/codec.hpp"

namespace fabric::daemon {

namespace {

using routing::IpAddress;
using routing::Writer;

constexpr std::uint16_t kEtherIpv4 = 0x0800, kEtherArp = 0x0806, kEtherIpv6 = 0x86DD;
constexpr std::uint8_t kProtocolVrrp = 112, kProtocolIcmpv6 = 58;
constexpr std::uint8_t kNeighbourSolicitation = 135, kNeighbourAdvertisement = 136;
constexpr std::uint8_t kRouter = 0x80, kSolicited = 0x40, kOverride = 0x20;
constexpr std::uint8_t kSourceLinkAddress = 1, kTargetLinkAddress = 2;
constexpr std::uint16_t kArpRequest = 1, kArpReply = 2;
constexpr MacAddress kBroadcast{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
constexpr IpAddress kAllNodes{0xFF, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01};

void put(Writer& out, const MacAddress& mac) {
  out.bytes(std::as_bytes(std::span(mac)));
}
void put4(Writer& out, const IpAddress& address) {
  out.bytes(std::as_bytes(std::span(address).subspan(12)));
}
void put6(Writer& out, const IpAddress& address) {
  out.bytes(std::as_bytes(std::span(address)));
}

/// Where a group's packets go on an Ethernet (RFC 1112, RFC 2464).
MacAddress group_mac(const IpAddress& group) {
  if (is_ipv4(group)) {
    return {0x01, 0x00, 0x5E, static_cast<std::uint8_t>(group[13] & 0x7F), group[14], group[15]};
  }
  return {0x33, 0x33, group[12], group[13], group[14], group[15]};
}

EthernetFrame ethernet(const MacAddress& to, const MacAddress& from, std::uint16_t type) {
  EthernetFrame frame;
  Writer out(frame);
  put(out, to);
  put(out, from);
  out.number(type);
  return frame;
}

void append_ipv6(EthernetFrame& frame, std::uint8_t protocol, const IpAddress& source, const IpAddress& group,
                 std::span<const std::byte> payload) {
  Writer out(frame);
  out.number(std::uint32_t{0x6C000000});  // traffic class: network control (RFC 4594), as keepalived
  out.number(static_cast<std::uint16_t>(payload.size()));
  out.number(protocol);
  out.number(std::uint8_t{255});
  put6(out, source);
  put6(out, group);
  out.bytes(payload);
}

EthernetFrame icmpv6(const MacAddress& mac, const IpAddress& source, const IpAddress& group,
                     std::uint8_t type, std::uint8_t flags, const IpAddress& target, std::uint8_t option) {
  std::vector<std::byte> message;
  Writer out(message);
  out.number(type);
  out.number(std::uint8_t{0});
  out.number(std::uint16_t{0});  // checksum
  out.number(static_cast<std::uint32_t>(flags) << 24);
  put6(out, target);
  out.number(option);
  out.number(std::uint8_t{1});  // in units of 8 bytes
  put(out, mac);
  const std::uint16_t checksum = internet_checksum(source, group, kProtocolIcmpv6, message);
  message[2] = std::byte(checksum >> 8);
  message[3] = std::byte(checksum & 0xFF);
  EthernetFrame frame = ethernet(group_mac(group), mac, kEtherIpv6);
  append_ipv6(frame, kProtocolIcmpv6, source, group, message);
  return frame;
}

EthernetFrame arp(const MacAddress& mac, const IpAddress& sender, const MacAddress& target_mac,
                  const IpAddress& target) {
  EthernetFrame frame = ethernet(kBroadcast, mac, kEtherArp);
  Writer out(frame);
  out.number(std::uint16_t{1});  // Ethernet
  out.number(kEtherIpv4);
  out.number(std::uint8_t{6});
  out.number(std::uint8_t{4});
  out.number(kArpRequest);
  put(out, mac);
  put4(out, sender);
  put(out, target_mac);
  put4(out, target);
  return frame;
}

}  // namespace

MacAddress virtual_mac(bool ipv4, std::uint8_t vrid) {
  return {0x00, 0x00, 0x5E, 0x00, static_cast<std::uint8_t>(ipv4 ? 1 : 2), vrid};
}

IpAddress link_local(const MacAddress& mac) {
  return {0xFE,   0x80,   0,    0,    0,      0,      0,     0, static_cast<std::uint8_t>(mac[0] ^ 0x02),
          mac[1], mac[2], 0xFF, 0xFE, mac[3], mac[4], mac[5]};
}

EthernetFrame vrrp_frame(const MacAddress& mac, const IpAddress& source, std::span<const std::byte> payload) {
  const bool ipv4 = is_ipv4(source);
  const IpAddress group = vrrp_group(ipv4);
  EthernetFrame frame = ethernet(group_mac(group), mac, ipv4 ? kEtherIpv4 : kEtherIpv6);
  if (!ipv4) {
    append_ipv6(frame, kProtocolVrrp, source, group, payload);
    return frame;
  }
  std::vector<std::byte> header;
  Writer out(header);
  out.number(std::uint8_t{0x45});
  out.number(std::uint8_t{0xC0});  // internetwork control
  out.number(static_cast<std::uint16_t>(20 + payload.size()));
  out.number(std::uint32_t{0x00004000});  // identification 0, don't fragment
  out.number(std::uint8_t{255});
  out.number(kProtocolVrrp);
  out.number(std::uint16_t{0});
  put4(out, source);
  put4(out, group);
  const std::uint16_t checksum = internet_checksum(header);
  header[10] = std::byte(checksum >> 8);
  header[11] = std::byte(checksum & 0xFF);
  frame.insert(frame.end(), header.begin(), header.end());
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

EthernetFrame announcement(const MacAddress& mac, const IpAddress& address) {
  if (is_ipv4(address)) return arp(mac, address, mac, address);
  return icmpv6(mac, address, kAllNodes, kNeighbourAdvertisement, kRouter | kOverride, address,
                kTargetLinkAddress);
}

EthernetFrame address_request(const MacAddress& mac, const IpAddress& source, const IpAddress& target) {
  if (is_ipv4(target)) return arp(mac, source, {}, target);
  IpAddress group{0xFF, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xFF};  // solicited-node
  std::copy(target.begin() + 13, target.end(), group.begin() + 13);
  return icmpv6(mac, source, group, kNeighbourSolicitation, 0, target, kSourceLinkAddress);
}

std::optional<IpAddress> arp_reply_sender(std::span<const std::byte> packet) {
  routing::Reader in(packet);
  in.require(in.number<std::uint16_t>() == 1);
  in.require(in.number<std::uint16_t>() == kEtherIpv4);
  in.require(in.number<std::uint16_t>() == 0x0604);
  in.require(in.number<std::uint16_t>() == kArpReply);
  in.bytes(6);
  IpAddress sender{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
  for (std::size_t i = 12; i < sender.size(); ++i) sender[i] = in.number<std::uint8_t>();
  if (in.bad()) return std::nullopt;
  return sender;
}

std::optional<IpAddress> neighbour_advertisement_target(std::span<const std::byte> message) {
  routing::Reader in(message);
  in.require(in.number<std::uint8_t>() == kNeighbourAdvertisement);
  in.require(in.number<std::uint8_t>() == 0);
  in.number<std::uint16_t>();
  in.require((in.number<std::uint32_t>() >> 24 & kSolicited) != 0);
  IpAddress target{};
  for (std::uint8_t& byte : target) byte = in.number<std::uint8_t>();
  if (in.bad()) return std::nullopt;
  return target;
}

}  // namespace fabric::daemon
