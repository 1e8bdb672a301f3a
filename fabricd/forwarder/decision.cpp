#include "fabricd/forwarder/decision.hpp"

namespace fabric::daemon {
namespace {

using routing::FrameHeader;
constexpr std::size_t kFlags = 0, kHopLimit = 1, kDestination = 2;

Lid other_way(Lid lid) {
  return Lid(lid.value() ^ 1);
}

PortIndex egress_of(const routing::ForwardingState& state, Lid lid) {
  return lid.value() < state.egress.size() ? state.egress[lid.value()] : kNoPort;
}

}  // namespace

Decision decide_egress(const routing::ForwardingState& state, PortMask up, Lid destination,
                       bool turned) noexcept {
  using Verdict = Decision::Verdict;
  const PortIndex ahead = egress_of(state, destination);
  if ((up & port_bit(ahead)) != 0) return {Verdict::send, ahead};
  const PortIndex back = egress_of(state, other_way(destination));
  if (ahead == kNoPort && back == kNoPort) return {Verdict::drop, kNoPort, false, HostCounter::drop_no_route};
  if (turned) return {Verdict::drop, kNoPort, false, HostCounter::drop_turned_twice};
  if ((up & port_bit(back)) != 0) return {Verdict::send, back, true};
  return {Verdict::drop, kNoPort, false, HostCounter::drop_detached};
}

Decision decide_received(const routing::ForwardingState& state, PortMask up,
                         const FrameHeader& header) noexcept {
  using Verdict = Decision::Verdict;
  if (state.self != kNoHost && routing::host_of(header.destination) == state.self) return {Verdict::deliver};
  if (header.hop_limit <= 1) {
    if ((header.flags & FrameHeader::kHopLimitEcho) != 0 && header.kind == routing::FrameClass::echo)
      return {Verdict::answer};
    return {Verdict::drop, kNoPort, false, HostCounter::drop_hop_limit};
  }
  return decide_egress(state, up, header.destination, (header.flags & FrameHeader::kTurned) != 0);
}

void decrement_hop_limit(std::span<std::byte> frame) noexcept {
  frame[kHopLimit] = std::byte(std::to_integer<unsigned>(frame[kHopLimit]) - 1);
}

void turn(std::span<std::byte> frame) noexcept {
  frame[kDestination + 1] ^= std::byte{1};
  frame[kFlags] |= std::byte{FrameHeader::kTurned};
}

Lid destination_of(std::span<const std::byte> frame) noexcept {
  return Lid(static_cast<std::uint16_t>(std::to_integer<unsigned>(frame[kDestination]) << 8 |
                                        std::to_integer<unsigned>(frame[kDestination + 1])));
}

bool is_turned(std::span<const std::byte> frame) noexcept {
  return (frame[kFlags] & std::byte{FrameHeader::kTurned}) != std::byte{0};
}

}  // namespace fabric::daemon
