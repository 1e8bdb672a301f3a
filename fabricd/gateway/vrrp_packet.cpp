// The order of the checks is that of RFC 9568, 7.1; what is looked at first is what decides the reason.
//
// Departures: the bits after the version 3 count of addresses are ignored when received (5.2.6); a checksum
// of version 3 over IPv4 is taken with and without pseudo-header; bytes behind the message are not (RFC 9568
// asks for a complete message only, but who appends something, such as keepalived's HMAC, means it to be
// checked).
#include "fabricd/gateway/vrrp_packet.hpp"

#include "fabricd/addresses.hpp"
#include "routing/codec.hpp"

namespace fabric::daemon {

namespace {

using routing::Centiseconds;
using routing::IpAddress;

constexpr std::uint8_t kProtocol = 112;
constexpr std::uint8_t kAdvertisement = 1;
constexpr std::size_t kHeader = 8, kAuthentication = 8;
constexpr int kHopLimit = 255;

constexpr IpAddress kGroup4{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 224, 0, 0, 18};
constexpr IpAddress kGroup6{0xFF, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12};

std::span<const std::uint8_t> short_form(const IpAddress& address) {
  const std::span<const std::uint8_t> all(address);
  return is_ipv4(address) ? all.subspan(12) : all;
}

/// An address that one router can have: no group, not unspecified; IPv6: link-local (RFC 9568, 5.1.2.1).
bool plausible_source(const IpAddress& source) {
  if (!is_ipv4(source)) return source[0] == 0xFE && (source[1] & 0xC0) == 0x80;
  return source[12] != 0 && source[12] < 224;
}

std::uint32_t sum(std::span<const std::byte> bytes, std::uint32_t start) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    start += std::to_integer<std::uint32_t>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
  }
  return start;
}

std::uint16_t fold(std::uint32_t sum) {
  while (sum >> 16) sum = (sum & 0xFFFF) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

}  // namespace

const char* name_of(VrrpDiscard reason) {
  constexpr const char* names[] = {
#define X(name, text) #name,
      FABRIC_VRRP_DISCARDS(X)
#undef X
  };
  return names[static_cast<std::size_t>(reason)];
}

const char* text_of(VrrpDiscard reason) {
  constexpr const char* texts[] = {
#define X(name, text) text,
      FABRIC_VRRP_DISCARDS(X)
#undef X
  };
  return texts[static_cast<std::size_t>(reason)];
}

IpAddress vrrp_group(bool ipv4) {
  return ipv4 ? kGroup4 : kGroup6;
}

std::uint16_t internet_checksum(std::span<const std::byte> bytes) {
  return fold(sum(bytes, 0));
}

std::uint16_t internet_checksum(const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                                std::span<const std::byte> bytes) {
  // Lengths fit into the low half of IPv6's 32 bits.
  std::uint32_t start = protocol + static_cast<std::uint32_t>(bytes.size());
  start = sum(std::as_bytes(short_form(source)), start);
  start = sum(std::as_bytes(short_form(destination)), start);
  return fold(sum(bytes, start));
}

std::variant<VrrpPacket, VrrpDiscard> decode_vrrp(const VrrpDatagram& datagram) {
  const bool ipv4 = is_ipv4(datagram.source);
  if (datagram.hop_limit != kHopLimit) return VrrpDiscard::hop_limit;
  if (datagram.destination != vrrp_group(ipv4)) return VrrpDiscard::destination;
  if (!plausible_source(datagram.source)) return VrrpDiscard::source;
  routing::Reader in(datagram.payload);
  if (datagram.payload.size() < kHeader) return VrrpDiscard::truncated;

  VrrpPacket packet;
  const auto first = in.number<std::uint8_t>();
  packet.version = first >> 4;
  if (packet.version != 3 && !(packet.version == 2 && ipv4)) return VrrpDiscard::version;
  if ((first & 0x0F) != kAdvertisement) return VrrpDiscard::type;
  packet.vrid = in.number<std::uint8_t>();
  packet.priority = in.number<std::uint8_t>();
  const auto count = in.number<std::uint8_t>();
  if (packet.version == 3) {
    packet.interval = Centiseconds(in.number<std::uint16_t>() & 0x0FFF);
  } else {
    if (in.number<std::uint8_t>() != 0) return VrrpDiscard::authentication;
    packet.interval = std::chrono::seconds(in.number<std::uint8_t>());
  }
  in.number<std::uint16_t>();  // checksum
  if (packet.vrid == 0) return VrrpDiscard::vrid_zero;
  if (count == 0) return VrrpDiscard::no_address;
  const std::size_t length =
      kHeader + count * (ipv4 ? 4u : 16u) + (packet.version == 2 ? kAuthentication : 0);
  if (datagram.payload.size() < length) return VrrpDiscard::truncated;
  if (datagram.payload.size() > length) return VrrpDiscard::trailing;
  if (packet.interval == Centiseconds(0)) return VrrpDiscard::interval_zero;

  // A sum that includes the checksum is 0 when it is right.
  const auto pseudo = [&] {
    return internet_checksum(datagram.source, datagram.destination, kProtocol, datagram.payload) == 0;
  };
  const auto message = [&] { return internet_checksum(datagram.payload) == 0; };
  if (ipv4 && message()) {
    packet.checksum = VrrpChecksum::message;
  } else if (packet.version == 3 && pseudo()) {
    packet.checksum = VrrpChecksum::pseudo;
  } else {
    return VrrpDiscard::checksum;
  }

  for (unsigned i = 0; i < count; ++i) {
    IpAddress address = ipv4 ? IpAddress{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF} : IpAddress{};
    for (std::size_t byte = ipv4 ? 12 : 0; byte < address.size(); ++byte) {
      address[byte] = in.number<std::uint8_t>();
    }
    packet.addresses.push_back(address);
  }
  return packet;
}

std::vector<std::byte> encode_vrrp(const VrrpPacket& packet, const IpAddress& source) {
  const bool ipv4 = is_ipv4(source);
  std::vector<std::byte> bytes;
  routing::Writer out(bytes);
  out.number(static_cast<std::uint8_t>(packet.version << 4 | kAdvertisement));
  out.number(packet.vrid);
  out.number(packet.priority);
  out.number(static_cast<std::uint8_t>(packet.addresses.size()));
  if (packet.version == 3) {
    out.number(static_cast<std::uint16_t>(packet.interval.count() & 0x0FFF));
  } else {
    out.number(std::uint8_t{0});
    out.number(static_cast<std::uint8_t>(std::chrono::ceil<std::chrono::seconds>(packet.interval).count()));
  }
  out.number(std::uint16_t{0});
  for (const IpAddress& address : packet.addresses) out.bytes(std::as_bytes(short_form(address)));
  if (packet.version == 2) bytes.resize(bytes.size() + kAuthentication);
  const bool plain = packet.version == 2 || (ipv4 && packet.checksum == VrrpChecksum::message);
  const std::uint16_t checksum =
      plain ? internet_checksum(bytes) : internet_checksum(source, vrrp_group(ipv4), kProtocol, bytes);
  bytes[6] = std::byte(checksum >> 8);
  bytes[7] = std::byte(checksum & 0xFF);
  return bytes;
}

}  // namespace fabric::daemon
