// Longest-prefix match for the data path: destination address to host index. Immutable once built; lookups do
// not allocate and need a handful of cache lines.
//
// Two kinds of entries. A pool is a prefix out of which every host has its address by its index: the k-th
// address of 10.88.0.0/16 is host k's, so the index is computed, whatever the number of hosts. A route is a
// prefix of one host. The longest match wins; a route goes before a pool of the same length. An address of a
// pool that is no host's has no match: it is not looked up in shorter prefixes.
//
// Structure: one sorted array per prefix length in use, longest first, and a bit per length. Usual tables
// have two to four lengths (a pool or two, a default), so a lookup is two to four comparisons or short binary
// searches; a thousand routes of one length cost ten steps. A trie would be faster for a full Internet table,
// which nobody carries over a ring.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "routing/forwarding_state.hpp"

namespace fabric::routing {

class PrefixTable {
 public:
  PrefixTable() = default;
  /// Routes are taken as ForwardingState::prefixes has them, in any order; of equal prefixes the first
  /// counts. Prefixes with bits beyond their length are taken without these bits.
  PrefixTable(std::span<const Prefix> pools, std::span<const std::pair<Prefix, HostIndex>> routes);

  /// The host that an address belongs to, kNoHost if none. `address` is 16 bytes; IPv4 as ::ffff:a.b.c.d.
  [[nodiscard]] HostIndex lookup(const std::array<std::uint8_t, 16>& address) const noexcept {
    return find(load(address.data()));
  }
  /// The same for an IPv4 address in host byte order.
  [[nodiscard]] HostIndex lookup(std::uint32_t address) const noexcept {
    return find({0, std::uint64_t{0xFFFF} << 32 | address});
  }

  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }

 private:
  struct Key {
    std::uint64_t high = 0, low = 0;
    auto operator<=>(const Key&) const = default;
  };
  struct Entry {
    Key key;
    HostIndex host = kNoHost;  ///< kNoHost: a pool
  };
  struct Length {
    Key mask;
    std::uint32_t begin = 0, end = 0;  ///< of entries_
  };

  static Key load(const std::uint8_t* bytes) noexcept;
  static Key mask_of(unsigned length) noexcept;
  [[nodiscard]] HostIndex find(Key address) const noexcept;

  std::vector<Entry> entries_;   ///< by length, longest first, then by key
  std::vector<Length> lengths_;  ///< longest first
};

}  // namespace fabric::routing
