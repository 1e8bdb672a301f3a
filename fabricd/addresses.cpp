#include "fabricd/addresses.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace fabric::daemon {

namespace {
constexpr IpAddress kIpv4Mapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
}

bool is_ipv4(const IpAddress& address) {
  return std::equal(address.begin(), address.begin() + 12, kIpv4Mapped.begin());
}

bool is_ipv4(const routing::Prefix& prefix) {
  return prefix.length >= 96 && is_ipv4(prefix.address);
}

std::optional<IpAddress> parse_address(std::string_view text) {
  const std::string copy(text);
  IpAddress address = kIpv4Mapped;
  if (inet_pton(AF_INET, copy.c_str(), address.data() + 12) == 1) return address;
  if (inet_pton(AF_INET6, copy.c_str(), address.data()) == 1) return address;
  return std::nullopt;
}

std::string to_string(const IpAddress& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (is_ipv4(address)) {
    inet_ntop(AF_INET, address.data() + 12, text, sizeof text);
  } else {
    inet_ntop(AF_INET6, address.data(), text, sizeof text);
  }
  return text;
}

std::optional<routing::Prefix> parse_prefix(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto address = parse_address(text.substr(0, slash));
  if (!address) return std::nullopt;
  unsigned length = 0;
  const auto digits = text.substr(slash + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), length);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  if (is_ipv4(*address)) {
    if (length > 32) return std::nullopt;
    length += 96;
  }
  if (length > 128) return std::nullopt;
  for (unsigned bit = length; bit < 128; ++bit) {
    if ((*address)[bit / 8] & (0x80u >> (bit % 8))) return std::nullopt;
  }
  return routing::Prefix{*address, static_cast<std::uint8_t>(length)};
}

std::string to_string(const routing::Prefix& prefix) {
  const unsigned length = is_ipv4(prefix) ? prefix.length - 96u : prefix.length;
  return to_string(prefix.address) + "/" + std::to_string(length);
}

std::optional<IpAddress> host_address(const routing::Prefix& network, HostIndex index) {
  const unsigned host_bits = 128u - network.length;
  const unsigned reserved = is_ipv4(network) ? 1 : 0;
  const std::uint32_t last = host_bits >= 17 ? 0xFFFF : (1u << host_bits) - 1 - reserved;
  if (index == kNoHost || index.value() > last) return std::nullopt;
  IpAddress address = network.address;
  address[14] = static_cast<std::uint8_t>(address[14] | (index.value() >> 8));
  address[15] = static_cast<std::uint8_t>(address[15] | (index.value() & 0xFF));
  return address;
}

}  // namespace fabric::daemon
