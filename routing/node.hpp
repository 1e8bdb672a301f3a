// The control plane of one host as a value: events in, actions out, no I/O, no clock, no thread. The daemon
// and the simulator run this same class.
//
// It is composed of cores of their own (adjacency, link state, LID assignment, ways), each in a file of its
// own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "routing/forwarding_state.hpp"
#include "words/words.hpp"

namespace fabric::routing {

/// A neighbour as the cable's handshake has shown it.
struct Neighbour {
  Guid host;
  std::string name;
  std::uint8_t port = 0;          ///< its PortIndex value
  std::uint32_t incarnation = 0;  ///< differs after each start of its daemon
};

/// GUID to host index, agreed by all: what the elected host assigned. Kept over restarts.
struct LidTable {
  std::uint64_t version = 0;
  struct Entry {
    Guid host;
    HostIndex index;
    auto operator<=>(const Entry&) const = default;
  };
  std::vector<Entry> entries;  ///< sorted by GUID
};

// --- events
struct CableUp {
  PortIndex port;
  Neighbour neighbour;
  std::uint64_t rate = 0;  ///< bit/s
  std::uint32_t cost = 0;  ///< 0: from the rate
};
struct CableDown {
  PortIndex port;
  std::string reason;
};
struct MessageReceived {
  PortIndex port;
  std::vector<std::byte> message;
};
struct PrefixesChanged {  ///< what this host serves besides its own addresses, and whether it has a default
                          ///< route
  std::vector<Prefix> prefixes;
};
struct TimerExpired {};  ///< next_timer() has come
using Event = std::variant<CableUp, CableDown, MessageReceived, PrefixesChanged, TimerExpired>;

// --- actions
struct SendMessage {  ///< over the port's control queue pair: reliable and in order while the cable lives
  PortIndex port;
  std::vector<std::byte> message;  ///< at most kMaxMessage bytes
};
struct ResetCable {  ///< the neighbour is silent or speaks nonsense: drop the connection and begin anew
  PortIndex port;
  std::string reason;
};
struct LidsAgreed {  ///< write to stable storage; give each cable's subnet manager its LIDs
  LidTable table;
};
struct Publish {  ///< to the data path
  std::shared_ptr<const ForwardingState> state;
};
struct Notice {  ///< for `fabricctl monitor` and the log
  enum class Level : std::uint8_t { info, warning, error } level = Level::info;
  std::string kind;  ///< stable word: "adjacency-full", "host-gone", "way-changed", ...
  std::string text;
};
using Action = std::variant<SendMessage, ResetCable, LidsAgreed, Publish, Notice>;

inline constexpr std::size_t kMaxMessage = 16384;

}  // namespace fabric::routing
