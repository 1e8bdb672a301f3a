// Keeps the hosts from forwarding in circles while the map changes.
//
// All hosts compute the same ways from the same map, but not at the same moment. A host that already uses the
// new ways and one that still uses the old ones can send a frame back and forth. So a host goes over in two
// steps. First it takes out every entry that differs between the old ways and the new ones (a missing entry
// counts as a dead port: the frame is turned, and most find their way), and says that it works with the new
// map (Advertisement::map). Only when all hosts that it can reach have said the same it puts in the new
// entries. At any moment then, whatever is installed anywhere belongs to one set of trees; trees have no
// circles, and a frame changes from one tree to the other once. The same holds for a port that was dead and
// comes back.
//
// Failures do not change the ways (ways.hpp), so none of this delays a failover; nor does it delay a cable
// that comes back to a map that has kept it. What waits is growth, a flood's round trip.
#pragma once

#include <bitset>
#include <vector>

#include "words/words.hpp"

namespace fabric::routing {

class Agreement {
 public:
  using Ports = std::bitset<256>;

  /// The ways and the live ports as they should be: entries that differ are taken out. `target` is by LID.
  void propose(std::vector<PortIndex> target, const Ports& live);
  /// All have proposed the same: the entries and ports are taken in.
  void settle();
  /// By LID: what may be used now.
  [[nodiscard]] std::vector<PortIndex> entries() const;

 private:
  std::vector<PortIndex> target_, installed_;
  Ports live_, usable_;
};

}  // namespace fabric::routing
