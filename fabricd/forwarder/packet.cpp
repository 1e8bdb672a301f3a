#include "fabricd/forwarder/packet.hpp"

#include <algorithm>
#include <cstring>

namespace fabric::daemon {
namespace {

constexpr std::uint8_t kIcmp = 1, kTcp = 6, kUdp = 17, kIcmpv6 = 58, kSctp = 132, kUdpLite = 136;
constexpr std::uint8_t kHopByHop = 0, kRouting = 43, kFragment = 44, kDestinationOptions = 60;
constexpr std::size_t kIpv4Header = 20, kIpv6Header = 40;

unsigned byte_at(std::span<const std::byte> bytes, std::size_t at) {
  return std::to_integer<unsigned>(bytes[at]);
}
unsigned word_at(std::span<const std::byte> bytes, std::size_t at) {
  return byte_at(bytes, at) << 8 | byte_at(bytes, at + 1);
}
void put_word(std::span<std::byte> bytes, std::size_t at, unsigned value) {
  bytes[at] = std::byte(value >> 8);
  bytes[at + 1] = std::byte(value);
}

/// Mixes 8 bytes more into a hash (the multiply-xorshift step of MurmurHash3's finalizer).
std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash ^= value;
  hash *= 0xFF51AFD7ED558CCD;
  return hash ^ hash >> 33;
}
std::uint64_t mix(std::uint64_t hash, std::span<const std::byte> bytes) {
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data(), 8);
    hash = mix(hash, value);
  }
  return hash;
}

bool has_ports(std::uint8_t protocol) {
  return protocol == kTcp || protocol == kUdp || protocol == kSctp || protocol == kUdpLite;
}

/// The upper-layer header of a packet: its protocol and where it begins; `fragment`: it is not here, but in
/// the first fragment, or the packet is too short for it.
struct Upper {
  std::uint8_t protocol = 0;
  std::size_t offset = 0;
  bool fragmented = false;  ///< any fragment, the first too
  bool later_fragment = false;
};

Upper upper_of_ipv4(std::span<const std::byte> packet) {
  const unsigned fragment = word_at(packet, 6) & 0x3FFF;
  return {static_cast<std::uint8_t>(byte_at(packet, 9)), (byte_at(packet, 0) & 0xF) * std::size_t{4},
          fragment != 0, (fragment & 0x1FFF) != 0};
}

Upper upper_of_ipv6(std::span<const std::byte> packet) {
  Upper upper{static_cast<std::uint8_t>(byte_at(packet, 6)), kIpv6Header};
  // More than a few extension headers is not traffic: what is hidden behind them has no ports for us.
  for (int headers = 0; headers < 8 && upper.offset + 8 <= packet.size(); ++headers) {
    const bool fragment = upper.protocol == kFragment;
    if (!fragment && upper.protocol != kHopByHop && upper.protocol != kRouting &&
        upper.protocol != kDestinationOptions)
      break;
    if (fragment) {
      const unsigned field = word_at(packet, upper.offset + 2);
      upper.fragmented = (field & 0xFFF9) != 0;  // an "atomic" fragment is whole
      upper.later_fragment = (field & 0xFFF8) != 0;
    }
    const std::size_t length = fragment ? 8 : (byte_at(packet, upper.offset + 1) + 1) * std::size_t{8};
    upper.protocol = static_cast<std::uint8_t>(byte_at(packet, upper.offset));
    upper.offset += length;
    if (upper.later_fragment) break;
  }
  return upper;
}

/// RFC 1071.
std::uint32_t sum_words(std::span<const std::byte> bytes, std::uint32_t sum = 0) {
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) sum += word_at(bytes, i);
  if (bytes.size() % 2 != 0) sum += byte_at(bytes, bytes.size() - 1) << 8;
  return sum;
}
unsigned checksum(std::uint32_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xFFFF) + (sum >> 16);
  return ~sum & 0xFFFF;
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

PacketSummary summarize(std::span<const std::byte> packet) noexcept {
  PacketSummary summary;
  if (packet.empty()) return summary;
  const unsigned version = byte_at(packet, 0) >> 4;
  Upper upper;
  std::uint64_t hash = 0x9E3779B97F4A7C15;
  if (version == 4 && packet.size() >= kIpv4Header) {
    summary.destination[10] = summary.destination[11] = 0xFF;
    std::memcpy(&summary.destination[12], &packet[16], 4);
    const unsigned first = byte_at(packet, 16);
    const bool broadcast =
        all_zero(packet.subspan(16, 4)) ||
        std::all_of(&packet[16], &packet[16] + 4, [](auto b) { return b == std::byte{0xFF}; });
    summary.kind =
        broadcast || first >> 4 == 0xE ? PacketSummary::Kind::multicast : PacketSummary::Kind::unicast;
    upper = upper_of_ipv4(packet);
    hash = mix(hash, packet.subspan(12, 8));
  } else if (version == 6 && packet.size() >= kIpv6Header) {
    std::memcpy(summary.destination.data(), &packet[24], 16);
    summary.kind =
        byte_at(packet, 24) == 0xFF ? PacketSummary::Kind::multicast : PacketSummary::Kind::unicast;
    upper = upper_of_ipv6(packet);
    hash = mix(hash, packet.subspan(8, 32));
  } else {
    return summary;
  }
  summary.version = static_cast<std::uint8_t>(version);
  std::uint64_t ports = 0;
  if (has_ports(upper.protocol) && !upper.fragmented && upper.offset + 4 <= packet.size())
    ports = std::uint64_t{word_at(packet, upper.offset)} << 16 | word_at(packet, upper.offset + 2);
  hash = mix(hash, ports << 8 | upper.protocol);
  hash = mix(hash, hash >> 29);  // a second round, so that all bits of the ports reach the low bits
  summary.flow_hash = static_cast<std::uint32_t>(hash ^ hash >> 32);
  return summary;
}

std::size_t build_unreachable(std::span<const std::byte> packet, std::span<std::byte> out) noexcept {
  if (packet.empty()) return 0;
  const unsigned version = byte_at(packet, 0) >> 4;
  if (version == 4 && packet.size() >= kIpv4Header) {
    const Upper upper = upper_of_ipv4(packet);
    const unsigned source = byte_at(packet, 12);
    if (upper.later_fragment || source == 0 || source == 127 || source >= 0xE0) return 0;
    if (upper.protocol == kIcmp) {
      if (upper.offset >= packet.size()) return 0;
      const unsigned type = byte_at(packet, upper.offset);
      if (type != 0 && type != 8 && type != 13 && type != 14)
        return 0;  // anything but queries may be an error
    }
    // As much as fits 576 bytes, RFC 1812 section 4.3.2.3.
    const auto quoted = packet.first(std::min(packet.size(), 576 - kIpv4Header - 8));
    const std::size_t total = kIpv4Header + 8 + quoted.size();
    std::fill_n(out.begin(), kIpv4Header + 8, std::byte{0});
    out[0] = std::byte{0x45};
    out[1] = std::byte{0xC0};  // precedence internetwork control, RFC 1812 section 4.3.2.5
    put_word(out, 2, static_cast<unsigned>(total));
    out[8] = std::byte{64};
    out[9] = std::byte{kIcmp};
    std::copy_n(&packet[16], 4, &out[12]);
    std::copy_n(&packet[12], 4, &out[16]);
    put_word(out, 10, checksum(sum_words(out.first(kIpv4Header))));
    out[kIpv4Header] = std::byte{3};
    out[kIpv4Header + 1] = std::byte{1};
    std::copy(quoted.begin(), quoted.end(), out.begin() + kIpv4Header + 8);
    put_word(out, kIpv4Header + 2, checksum(sum_words(out.subspan(kIpv4Header, 8 + quoted.size()))));
    return total;
  }
  if (version == 6 && packet.size() >= kIpv6Header) {
    const Upper upper = upper_of_ipv6(packet);
    if (upper.later_fragment || byte_at(packet, 8) == 0xFF || all_zero(packet.subspan(8, 16))) return 0;
    if (upper.protocol == kIcmpv6 && (upper.offset >= packet.size() || byte_at(packet, upper.offset) < 128))
      return 0;  // errors are below 128
    // As much as fits the minimum MTU, RFC 4443 section 3.1.
    const auto quoted = packet.first(std::min(packet.size(), 1280 - kIpv6Header - 8));
    const std::size_t length = 8 + quoted.size();
    std::fill_n(out.begin(), kIpv6Header + 8, std::byte{0});
    out[0] = std::byte{0x60};
    put_word(out, 4, static_cast<unsigned>(length));
    out[6] = std::byte{kIcmpv6};
    out[7] = std::byte{64};
    std::copy_n(&packet[24], 16, &out[8]);
    std::copy_n(&packet[8], 16, &out[24]);
    out[kIpv6Header] = std::byte{1};
    out[kIpv6Header + 1] = std::byte{3};
    std::copy(quoted.begin(), quoted.end(), out.begin() + kIpv6Header + 8);
    // Pseudo-header of RFC 8200 section 8.1: addresses, length, next header.
    const auto pseudo = static_cast<std::uint32_t>(length) + kIcmpv6;
    put_word(out, kIpv6Header + 2,
             checksum(sum_words(out.subspan(kIpv6Header, length), sum_words(out.subspan(8, 32), pseudo))));
    return kIpv6Header + length;
  }
  return 0;
}

}  // namespace fabric::daemon
