// The relation to the neighbour on one cable.
//
//            connect                  neighbour's DatabaseEnd
//     down ----------> init --------------------------------> full
//      ^                 |                                      |
//      +-----------------+--------------------------------------+
//         the connection is gone, the neighbour is silent, or it makes no sense
//
// The control connection is reliable and in order while the cable lives, and new each time. So there is no
// three-way hello, no acknowledgement and no retransmission: each end says hello, sends all that it knows and
// DatabaseEnd; whoever has received DatabaseEnd knows all that the neighbour knew, and goes on being told
// the news. That an adjacency counts only when both ends are full is checked on the map (topology.hpp).
// Departure from OSPF (RFC 2328 section 10): no ExStart, Exchange and Loading; the whole database is tens of
// kilobytes and cheaper to send than to negotiate.
//
// The dead interval finds a neighbour whose control plane hangs. A host that was not scheduled itself must
// not blame its neighbour: after a pause of its own it listens for another while first (excuse()).
#pragma once

#include <optional>
#include <string>

#include "routing/messages.hpp"
#include "routing/node.hpp"

namespace fabric::routing {

class Adjacency {
 public:
  /// What a message means here.
  enum class Effect : std::uint8_t {
    nothing,
    full,       ///< now full
    lid_table,  ///< a LID table is complete: take_table()
    nonsense,   ///< the connection is not worth keeping
  };
  enum class Due : std::uint8_t { nothing, keepalive, dead };

  Adjacency(PortIndex port, const NodeTimers& timers) : timers_(&timers) { view_.port = port; }

  void connect(TimePoint now, const CableUp& cable, std::uint32_t cost);
  void disconnect(TimePoint now, const std::string& reason);
  /// Everything but the contents of advertisements, which are link_state's.
  Effect received(TimePoint now, const Message& message);
  void malformed() { ++view_.malformed; }
  void sent(TimePoint now);

  [[nodiscard]] Due due(TimePoint now) const;
  [[nodiscard]] std::optional<TimePoint> next_timer() const;
  /// This host has slept until now.
  void excuse(TimePoint now);

  LidTable take_table() { return std::move(table_); }
  [[nodiscard]] const AdjacencyView& view() const { return view_; }
  [[nodiscard]] bool connected() const { return view_.state != AdjacencyState::down; }

 private:
  void change(TimePoint now, AdjacencyState state);
  Effect assemble(const LidTablePart& part);

  const NodeTimers* timers_;
  AdjacencyView view_;
  TimePoint heard_, sent_;
  LidTable table_;  ///< parts so far
};

}  // namespace fabric::routing
