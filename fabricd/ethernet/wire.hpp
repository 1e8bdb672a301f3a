// What the two ends of an Ethernet cable say to each other before they are connected: the announcement that
// is sent to everybody on the cable, and the private data of librdmacm's messages. docs/ethernet.md has the
// bytes.
//
// All integers travel in network order. Decoding is total: any bytes give a value or nothing. Names are
// reduced to printable ASCII, as they end up on terminals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "verbs/cable.hpp"

namespace fabric::daemon {

/// Of the bytes here. A daemon that finds another one in a message knows only that somebody is there.
inline constexpr std::uint8_t kWireFormat = 1;

/// "I am here", to the link-local group, over UDP.
struct Announcement {
  std::uint8_t format = kWireFormat;  ///< where it is another one, nothing below is known
  bool leaving = false;               ///< the last one of a daemon that ends
  verbs::Identity identity;
  std::uint16_t service = 0;   ///< port of librdmacm's TCP port space where it listens
  std::uint16_t path_mtu = 0;  ///< the largest its port can use now, bytes
};

/// Private data of a connection request and of its acceptance. The name is known from the announcement.
struct ConnectionParameters {
  enum class Purpose : std::uint8_t { data = 0, control = 1 };
  Purpose purpose = Purpose::data;
  Guid host;
  std::uint8_t port = 0;
  std::uint32_t incarnation = 0;
  std::uint16_t version = 0;
  std::uint32_t attempt = 0;     ///< chosen by who connects; the same for both queue pairs of one attempt
  std::uint16_t path_mtu = 0;    ///< bytes; the smaller of the two ends' is used
  std::uint8_t ack_timeout = 0;  ///< 4.096 us * 2^n, n from 0 to 31; the longer of the two ends' is used
};

/// Private data of a rejection.
struct Rejection {
  std::uint16_t version = 0;  ///< of who rejects
  std::string reason;         ///< a sentence, cut to kMaxReason bytes
};

inline constexpr std::size_t kMaxName = 63;
inline constexpr std::size_t kMaxAnnouncement = 28 + kMaxName;
inline constexpr std::size_t kMaxReason = 120;
/// A request has room for 56 bytes of private data, a rejection for 148 (IBA 12.6, less librdmacm's 36).
inline constexpr std::size_t kConnectionParameters = 28;
inline constexpr std::size_t kMaxRejection = 8 + kMaxReason;

[[nodiscard]] std::vector<std::byte> encode(const Announcement& announcement);
[[nodiscard]] std::vector<std::byte> encode(const ConnectionParameters& parameters);
[[nodiscard]] std::vector<std::byte> encode(const Rejection& rejection);

/// Nothing where the bytes are not an announcement of any format.
[[nodiscard]] std::optional<Announcement> decode_announcement(std::span<const std::byte> bytes);
/// Private data arrives padded with zeros: what follows is ignored.
[[nodiscard]] std::optional<ConnectionParameters> decode_parameters(std::span<const std::byte> bytes);
[[nodiscard]] std::optional<Rejection> decode_rejection(std::span<const std::byte> bytes);

}  // namespace fabric::daemon
