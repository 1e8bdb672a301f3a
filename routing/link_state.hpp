// The link-state database: the newest advertisement of every host, and whether another one is news.
//
// Sequence numbers are 64 bits and never wrap; the higher one counts. A host that restarts begins at its
// incarnation times 2^30, which is above all that it said before; where its clock went back, its neighbours
// tell it what it said, and it goes on above that (RFC 2328 section 13.4). An advertisement carries its age
// in seconds on the way; those that grow too old are forgotten. Hosts that cannot be reached stay listed
// until then, because the map goes on counting with them.
//
// Departures from OSPF: no acknowledgements and no retransmission (connections between neighbours are
// reliable), no checksum (so are adapters), no MinLSInterval (the originator paces itself).
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "routing/messages.hpp"

namespace fabric::routing {

class LinkState {
 public:
  struct Record {
    Advertisement advertisement;
    std::vector<std::byte> encoded;
    TimePoint born;  ///< when its origin made it, as far as ages tell
  };
  enum class News : std::uint8_t { newer, same, older };

  /// How `key` relates to what is known.
  [[nodiscard]] News compare(const AdvertisementKey& key) const;
  /// Returns what it replaces, if anything.
  std::unique_ptr<Record> store(Advertisement advertisement, std::vector<std::byte> encoded, TimePoint born);
  /// Forgets those born before. Returns how many.
  std::size_t forget(TimePoint before, Guid except);

  [[nodiscard]] const Record* find(Guid origin) const;
  [[nodiscard]] const std::map<Guid, Record>& records() const { return records_; }

  static Flooded flooded(const Record& record, TimePoint now);

 private:
  std::map<Guid, Record> records_;
};

}  // namespace fabric::routing
