// What becomes of a frame: a function of the forwarding state, the header and which ports are up, and of
// nothing else. The same for frames of this host and of others; what differs is the hop limit, which the
// source does not spend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "fabricd/forwarder/counters.hpp"
#include "routing/forwarding_state.hpp"
#include "routing/frame.hpp"
#include "words/words.hpp"

namespace fabric::daemon {

/// Bit i: port i has a cable that frames can be sent on.
using PortMask = std::uint32_t;
inline constexpr unsigned kMaxPorts = 16;
constexpr PortMask port_bit(PortIndex port) {
  return port.value() < kMaxPorts ? PortMask{1} << port.value() : 0;
}

struct Decision {
  enum class Verdict : std::uint8_t {
    deliver,  ///< for this host
    send,     ///< by `egress`, turned first where `turn`
    answer,   ///< the hop limit ends here and the frame asks for an answer to that
    drop,     ///< for `reason`
  } verdict = Verdict::drop;
  PortIndex egress = kNoPort;
  bool turn = false;
  HostCounter reason = HostCounter::drop_no_route;
};

/// A frame that a port received; its hop limit as it came.
Decision decide_received(const routing::ForwardingState&, PortMask up, const routing::FrameHeader&) noexcept;

/// A frame that this host is about to send: a new one, one that has just been relayed, or one whose cable
/// died under it. Never `deliver` or `answer`.
Decision decide_egress(const routing::ForwardingState&, PortMask up, Lid destination, bool turned) noexcept;

/// @name Changes of an encoded header in place, as a relay makes them
/// @{
void decrement_hop_limit(std::span<std::byte> frame) noexcept;
/// The other way of the same host, marked as turned.
void turn(std::span<std::byte> frame) noexcept;
/// Destination and flags of an encoded header that is known to be good.
[[nodiscard]] Lid destination_of(std::span<const std::byte> frame) noexcept;
[[nodiscard]] bool is_turned(std::span<const std::byte> frame) noexcept;
/// @}

}  // namespace fabric::daemon
