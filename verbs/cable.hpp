// How a cable comes up: one interface, one implementation per link layer.
//
// A Cable is one port of this host. It does what its link layer needs until two fabricds have reliable
// connections to each other (InfiniBand: subnet management, then a handshake over QP1; RoCE and iWARP:
// librdmacm), keeps watching, and says when the connection is gone; then it begins anew by itself. Everything
// above (adjacency, routing, forwarding) is the same for all link layers. Single-threaded: all calls and
// callbacks happen on the control thread.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "words/words.hpp"

namespace fabric::verbs {

/// What a fabricd tells the other end of a cable.
struct Identity {
  Guid host;
  std::string name;               ///< at most 63 bytes
  std::uint8_t port = 0;          ///< PortIndex value at that host
  std::uint32_t incarnation = 0;  ///< differs after each start of the daemon
  std::uint16_t version = 0;      ///< of the protocol between neighbours
};

/// Two connected reliable queue pairs, in RTS. Owned by the cable, which destroys them only after `down` has
/// returned.
struct Connection {
  Identity neighbour;
  ibv_qp* data = nullptr;
  ibv_qp* control = nullptr;
  std::uint64_t rate = 0;      ///< bit/s
  std::uint32_t path_mtu = 0;  ///< bytes
  /// How long the adapter takes to find that the cable is dead, at least. Zero: unknown.
  Duration detection{};
};

/// The neighbour as far as it is known, for people.
enum class CablePhase : std::uint8_t {
  no_device,    ///< the port cannot be used; `reason` says what to do
  down,         ///< nothing plugged in, or the other end is off
  configuring,  ///< link is up, not yet Active (InfiniBand: nobody has configured the port yet)
  greeting,     ///< Active; no answer from a fabricd at the other end yet
  connected,
  refused,  ///< the other end is not one to join: cable to oneself, other version, duplicate GUID, no fabricd
};

struct CableStatus {
  CablePhase phase = CablePhase::down;
  std::string reason;            ///< why it is in this phase, a sentence
  std::string device;            ///< "mlx5_0"
  std::uint8_t device_port = 0;  ///< 1-based
  std::string link_layer;        ///< "InfiniBand", "Ethernet"
  Guid port_guid;
  std::string gid;
  Lid lid;
  std::uint8_t lmc = 0;
  std::string state;       ///< port state: "Down", "Init", "Armed", "Active"
  std::uint64_t rate = 0;  ///< bit/s
  std::uint32_t mtu = 0;   ///< bytes
  std::optional<Identity> neighbour;
  std::map<std::string, std::string> link_layer_facts;  ///< prefix, sm, sm_since, ... shown as they are
  std::map<std::string, std::uint64_t> counters;        ///< sweeps, mads_sent, handshakes, resets, ...
};

/// What a cable needs from the data path and the control plane to make its queue pairs.
struct CableResources {
  ibv_context* context = nullptr;
  ibv_pd* pd = nullptr;
  ibv_cq* data_cq = nullptr;     ///< send and receive of the data queue pair
  ibv_cq* control_cq = nullptr;  ///< of the control queue pair
  ibv_qp_cap data_cap{};
  ibv_qp_cap control_cap{};
};

class Cable {
 public:
  struct Callbacks {
    /// Queue pairs exist in INIT: post receive buffers now, before the other end can send.
    std::function<void(ibv_qp* data, ibv_qp* control)> prepare;
    std::function<void(const Connection&)> up;
    /// The connection is no more (`detector`: "event", "completion", "heartbeat", "peer", "local"). When this
    /// returns, nobody may touch the queue pairs. Comes once after every `prepare`: also when `up` never
    /// came, because the other end did not get that far.
    std::function<void(const std::string& detector, const std::string& reason)> down;
    std::function<void()> changed;  ///< status() has changed
    /// Something that people may want to read later, a sentence.
    std::function<void(const std::string& text)> noted;
  };

  virtual ~Cable() = default;
  virtual void start() = 0;
  /// Says goodbye to the neighbour (its `down` gets detector "peer" at once) and releases the port.
  virtual void stop() = 0;
  /// Gives up the present connection, if any, and begins anew. Calls `down` first.
  virtual void reset(const std::string& detector, const std::string& reason) = 0;
  /// The ring-wide agreement: base LID by host GUID. May be called at any time; the port takes its LIDs from
  /// it when it is next safe, and by reset() where the ones in use clash.
  virtual void set_lids(const std::map<Guid, Lid>& base_lids, std::uint8_t lmc) = 0;
  [[nodiscard]] virtual const CableStatus& status() const = 0;
};

}  // namespace fabric::verbs
