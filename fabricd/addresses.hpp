// IP prefixes and addresses as text, and which address of the fabric's network a host has.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "routing/forwarding_state.hpp"

namespace fabric::daemon {

/// An address in the form that routing::Prefix has it: IPv4 as ::ffff:a.b.c.d.
using IpAddress = std::array<std::uint8_t, 16>;

/// Whether it is in ::ffff:0:0/96.
bool is_ipv4(const IpAddress& address);
bool is_ipv4(const routing::Prefix& prefix);

/// "10.88.0.1", "fd88:fab::1".
std::optional<IpAddress> parse_address(std::string_view text);
std::string to_string(const IpAddress& address);

/// "10.88.0.0/16", "fd88:fab::/64". Nothing if it is not a prefix, or has bits set behind its length.
std::optional<routing::Prefix> parse_prefix(std::string_view text);
std::string to_string(const routing::Prefix& prefix);

/// The index-th address of the network: its first address plus index. Nothing for index 0 and where the
/// network is too small (an IPv4 network's last address is its broadcast address and nobody's).
std::optional<IpAddress> host_address(const routing::Prefix& network, HostIndex index);

}  // namespace fabric::daemon
