// A host's part in a gateway pair: election cores (one per address family), VRRP sockets, virtual MAC,
// addresses, announcements. gateway.cpp tells how they are joined; docs/gateway.md the whole.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabricd/configuration.hpp"
#include "fabricd/control/event_log.hpp"
#include "routing/gateway_election.hpp"

namespace fabric::daemon {

/// Runs on the control thread.
class Gateway {
 public:
  struct Callbacks {
    /// serves() or something in view() has changed. Called from the event loop, never from within a call of
    /// this class.
    std::function<void()> changed;
    /// To be known by all hosts of the ring: replaces what was flooded before; at most 128 bytes, opaque.
    /// Empty: nothing to tell any more. Called at any time, also from within a call of this class.
    std::function<void(const std::vector<std::byte>& state)> flood;
    std::function<void(EventLevel level, std::string kind, std::string text, boost::json::object facts)>
        record;
  };

  /// `settings.interface` is not empty; the interface need not exist yet. What a killed daemon has left
  /// behind is removed. Throws std::runtime_error with a sentence that says what to do.
  Gateway(boost::asio::io_context& io, const Configuration::Gateway& settings, Guid self,
          Callbacks callbacks);
  /// As master says goodbye (priority 0), and hands over over the ring; removes all that it has set.
  ~Gateway();
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  /// @name The ring
  /// @{
  /// What `host` floods (the opaque bytes); empty: nothing, or not any more. Of any host but this one.
  void peer_state(Guid host, std::span<const std::byte> state);
  /// Whether this host is reachable over the ring. Only changes need be told; unknown is unreachable. Tell a
  /// host's peer_state() first, so that nobody serves between the two.
  void peer_reachable(Guid host, bool reachable);
  /// @}

  struct Upstream {
    bool present = false;                       ///< a default route that works (probing included)
    std::vector<routing::IpAddress> next_hops;  ///< routers on the LAN; asked for signs of life
  };
  /// @name What is tracked
  /// @{
  void upstream(bool ipv4, const Upstream& upstream);
  void ring_reachable(bool reachable);  ///< at least one other host
  /// @}

  /// Hands over to the other gateway, both families. Returns what is in the way, or an empty string when it
  /// has been asked for; view() tells when it is done.
  std::string handover();

  /// Whether this host is master for the family, and so shall originate the default route if
  /// originate = "master".
  [[nodiscard]] bool serves(bool ipv4) const;

  /// For `fabricctl gateway`: leaf names of ietf-vrrp (RFC 8347) where it has one.
  [[nodiscard]] boost::json::object view() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace fabric::daemon
