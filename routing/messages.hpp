// What neighbours say to each other, and its binary form. docs/routing.md has the layouts byte by byte.
//
// Decoding is strict: every length is bounded, every number is checked against its range, nothing may be left
// over. What does not decode costs the sender its cable.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "routing/forwarding_state.hpp"
#include "routing/node.hpp"
#include "words/words.hpp"

namespace fabric::routing {

inline constexpr std::uint8_t kMessageVersion = 1;
inline constexpr std::size_t kMaxName = 63;
inline constexpr std::size_t kMaxLinks = 254;
inline constexpr std::size_t kMaxPrefixes = 256;
inline constexpr std::size_t kMaxGatewayState = 128;
inline constexpr std::uint64_t kMaxSequence = std::uint64_t{1} << 62;
inline constexpr std::uint32_t kMaxCost = 1u << 24;
/// Added to the cost of each cable of a drained host, in either direction: more than any way around costs.
inline constexpr std::uint32_t kDrainedCost = 1u << 26;

/// How much a host's wish for an index weighs.
enum class Claim : std::uint8_t {
  none = 0,
  name = 1,        ///< from the number at the end of its name
  configured = 2,  ///< its operator's wish
  held = 3,        ///< agreed before
};

/// One end of a cable, as its host advertises it.
struct Link {
  PortIndex port;
  Guid neighbour;
  PortIndex neighbour_port;
  bool up = false;         ///< adjacency full; false: it was, and is remembered
  std::uint32_t cost = 1;  ///< of sending, 1..kMaxCost
  std::uint32_t rate = 0;  ///< Mbit/s
  bool operator==(const Link&) const = default;
};

/// What a host says about itself, flooded to all.
struct Advertisement {
  Guid origin;
  std::uint64_t sequence = 0;  ///< 1..kMaxSequence, the highest counts
  std::uint32_t incarnation = 0;
  std::uint8_t priority = 0;
  bool drained = false;
  Claim claim = Claim::none;
  HostIndex index = kNoHost;  ///< the claimed one
  std::string name;
  std::uint64_t map = 0;    ///< hash of the map that it works with
  std::vector<Link> links;  ///< by port; one per port
  std::vector<Prefix> prefixes;
  std::vector<std::byte> gateway;  ///< for the other gateway, opaque here; empty: this host is none
  bool operator==(const Advertisement&) const = default;
};

/// First words of an advertisement, enough to know whether it is news.
struct AdvertisementKey {
  Guid origin;
  std::uint64_t sequence = 0;
  std::uint32_t incarnation = 0;
};

/// An advertisement on its way: encoded, with the age that it had when it was sent.
struct Flooded {
  std::uint32_t age = 0;  ///< seconds
  std::vector<std::byte> advertisement;
};

struct Hello {
  Guid host;
  std::uint32_t incarnation = 0;
  PortIndex port;
};
struct Advertisements {
  std::vector<Flooded> items;
};
/// The LID table, or a part of it: entries [first, first + entries.size()) of `total`.
struct LidTablePart {
  std::uint64_t version = 0;
  std::uint16_t total = 0, first = 0;
  std::vector<LidTable::Entry> entries;
};
struct DatabaseEnd {};  ///< all that the sender knew when the cable came up has been sent
using Message = std::variant<Hello, Advertisements, LidTablePart, DatabaseEnd>;

std::vector<std::byte> encode(const Advertisement& advertisement);
std::optional<Advertisement> decode_advertisement(std::span<const std::byte> in);
std::optional<AdvertisementKey> decode_key(std::span<const std::byte> in);

std::vector<std::byte> encode(const Message& message);
std::optional<Message> decode_message(std::span<const std::byte> in);

/// As many messages of at most kMaxMessage bytes as it takes.
std::vector<std::vector<std::byte>> encode_all(std::span<const Flooded> items);
std::vector<std::vector<std::byte>> encode_all(const LidTable& table);

/// Sorted by GUID, every GUID and every index at most once, indexes 1..kMaxHostIndex, version not 0.
bool valid(const LidTable& table);

}  // namespace fabric::routing
