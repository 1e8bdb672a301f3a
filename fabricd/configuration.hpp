// What an operator may say in the configuration file. Every value has a default that works; the file is TOML
// and strict. docs/configuration.md describes each key.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fabricd/addresses.hpp"
#include "routing/forwarding_state.hpp"

namespace fabric::daemon {

struct Configuration {
  struct Host {
    std::string name;  ///< empty: the machine's host name; at most 63 bytes
    /// 0..15; the highest is elected to assign LIDs, and to be the subnet manager of a cable.
    std::uint8_t priority = 8;
    std::uint16_t index = 0;  ///< the wish for a host index; 0: none
  } host;

  struct Network {
    std::string interface = "fab0";
    std::uint32_t mtu = 65520;                              ///< bytes, 1280..65520
    routing::Prefix ipv4 = *parse_prefix("10.88.0.0/16");   ///< host k has its k-th address
    routing::Prefix ipv6 = *parse_prefix("fd88:fab::/64");  ///< likewise
    std::vector<routing::Prefix> prefixes;                  ///< what else this host serves
    /// Whether the kernel is told to pass packets on, where this host serves prefixes or is a gateway.
    bool forwarding = true;
  } network;

  struct Routing {
    bool multipath = true;  ///< use both ways where they cost the same
  } routing;

  struct Timers {
    using ms = std::chrono::milliseconds;
    /// How often an idle cable is probed; the adapter at the other end answers.
    std::chrono::nanoseconds heartbeat = ms(5);
    /// How often a daemon says that it is alive...
    std::chrono::nanoseconds keepalive = ms(200);
    /// ...and how long it may be silent until its neighbours begin anew with it.
    std::chrono::nanoseconds dead = ms(1000);
  } timers;

  struct Ports {
    std::vector<std::string> use;               ///< "mlx5_0" or "mlx5_0/1"; empty: all
    std::vector<std::string> ignore;            ///< likewise
    std::map<std::string, std::uint32_t> cost;  ///< by "mlx5_0" or "mlx5_0/1"; others: from the rate

    /// Whether port `number` (from 1) of `device` is to be used.
    [[nodiscard]] bool wanted(std::string_view device, unsigned number) const;
    /// The configured cost of a port, 0 where there is none.
    [[nodiscard]] std::uint32_t cost_of(std::string_view device, unsigned number) const;
  } ports;

  struct Subnet {
    /// M_Key of the InfiniBand ports at both ends of a cable that this host manages; 0: none.
    std::uint64_t m_key = 0;
  } subnet;

  struct Forwarder {
    std::uint32_t receive_buffers = 256;                               ///< per port
    std::uint32_t send_buffers = 512;                                  ///< per port
    std::chrono::nanoseconds spin = std::chrono::microseconds(10);     ///< looking for work before it sleeps
    std::chrono::nanoseconds reorder = std::chrono::milliseconds(30);  ///< longest wait for a missing frame
  } forwarder;

  /// A host next to a LAN, one of a pair; docs/gateway.md.
  struct Gateway {
    struct Address {
      IpAddress address;
      std::uint8_t length = 128;  ///< bits of the LAN's network, as in routing::Prefix
    };
    enum class Checksum : std::uint8_t { automatic, pseudo, message };

    std::string interface;           ///< on the LAN; empty: this host is no gateway
    std::vector<Address> addresses;  ///< virtual ones, IPv4 and IPv6; at least one
    std::uint8_t vrid = 1;           ///< 1..255
    std::uint8_t priority = 100;     ///< 1..255; 255: the addresses are this host's own
    std::uint8_t version = 3;        ///< of VRRP for IPv4, 2 or 3; for IPv6 it is always 3
    std::chrono::nanoseconds interval = std::chrono::milliseconds(50);  ///< version 2: whole seconds
    bool preempt = true;
    std::chrono::nanoseconds preempt_delay = std::chrono::seconds(3);
    bool accept = false;                      ///< packets to the virtual addresses themselves
    Checksum checksum = Checksum::automatic;  ///< what is sent with version 3 over IPv4
    bool track_ring = true, track_default_route = true;
    bool originate_all = false;    ///< offer the default route also while not master
    std::vector<IpAddress> probe;  ///< the default route counts while one of these answers; empty: always
  } gateway;

  struct Log {
    std::string level = "info";
  } log;
};

/// All that is wrong with a file, one line each: "FILE:LINE:COLUMN: what, and what to do".
class ConfigurationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Reads the text of a configuration file; `name` is for messages. Throws ConfigurationError.
Configuration parse_configuration(std::string_view text, const std::string& name);

/// Reads a file. Throws ConfigurationError.
Configuration load_configuration(const std::string& path);

/// Of `known`, the one that `word` was probably meant to be; empty if none is near.
std::string nearest_word(std::string_view word, const std::vector<std::string>& known);

}  // namespace fabric::daemon
