// A port's management datagrams: libibumad's descriptor with the agents that a subnet manager, an
// administrator and the handshake need, and the port's claim to have a subnet manager (issm).
//
// The kernel matches answers to requests, and gives back a request that got none within its timeout; it does
// not repeat any (the cores do). Non-blocking; the owner watches descriptor() for reading. Single-threaded.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "verbs/mad.hpp"

namespace fabric::verbs {

class MadPort {
 public:
  /// Vendor classes of range 2 are told apart by the OUI of who defined them. Locally administered (bit 1 of
  /// the first octet), so that no company owns it.
  static constexpr std::uint32_t kOui = 0x02FAB0;

  struct Incoming {
    Mad mad;
    MadAddress source;
    bool timed_out = false;  ///< `mad` is a request of our own that nobody has answered
  };

  /// Opens umad of `device`'s port (from 1) and registers the agents. `manage`: with those of a subnet
  /// manager and administrator, and holds issmN as long as it lives. Throws VerbsError; EBUSY where another
  /// program is the subnet manager of this port.
  MadPort(const std::string& device, std::uint8_t port, bool manage);
  ~MadPort();
  MadPort(const MadPort&) = delete;
  MadPort& operator=(const MadPort&) = delete;

  [[nodiscard]] int descriptor() const;
  /// `timeout` 0: no answer is expected. False when it could not be sent; no answer and no timeout comes
  /// then.
  bool send(const Mad& mad, const MadAddress& destination, std::chrono::milliseconds timeout);
  /// An answer of the administrator: a whole datagram, or (RMPP active) headers and records of any length,
  /// which the kernel divides.
  bool send(std::span<const std::uint8_t> answer, const MadAddress& destination);
  /// Nothing when there is none now. Throws VerbsError when the port is gone.
  [[nodiscard]] std::optional<Incoming> receive();

  struct Counters {
    std::uint64_t sent = 0, received = 0, unsent = 0, malformed = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  enum Agent : std::uint8_t { directed_route, lid_routed, administration, handshake, count };
  [[nodiscard]] std::optional<Agent> agent_for(const Mad& mad) const;
  bool post(Agent agent, std::span<const std::uint8_t> bytes, const MadAddress& destination,
            std::chrono::milliseconds timeout);
  void close() noexcept;

  int port_ = -1;  ///< libibumad's name for the open port
  int issm_ = -1;
  std::array<int, count> agents_{-1, -1, -1, -1};
  std::vector<std::uint8_t> buffer_;
  Counters counters_;
};

}  // namespace fabric::verbs
