// decide_received() and decide_egress() against the rule, exhaustively on a small state, and the changes that
// a relay makes to a header.
#include <gtest/gtest.h>

#include "fabricd/forwarder/decision.hpp"

namespace fabric::daemon {
namespace {

using routing::FrameClass;
using routing::FrameHeader;
using routing::lid_of;
using Verdict = Decision::Verdict;

constexpr PortIndex kLeft{0}, kRight{1};
constexpr PortMask kBoth = port_bit(kLeft) | port_bit(kRight);

/// Host 1 of a ring: way 0 leaves to the right, way 1 to the left. Host 4 can be reached by way 0 only, host
/// 5 not at all.
routing::ForwardingState ring() {
  routing::ForwardingState state;
  state.self = HostIndex(1);
  state.egress.assign(12, kNoPort);
  for (std::uint16_t host : {2, 3}) {
    state.egress[lid_of(HostIndex(host), 0).value()] = kRight;
    state.egress[lid_of(HostIndex(host), 1).value()] = kLeft;
  }
  state.egress[lid_of(HostIndex(4), 0).value()] = kRight;
  return state;
}

FrameHeader header_to(unsigned host, unsigned way, std::uint8_t hop_limit = 10, std::uint8_t flags = 0) {
  FrameHeader header;
  header.destination = lid_of(HostIndex(static_cast<std::uint16_t>(host)), way);
  header.source = lid_of(HostIndex(3), 0);
  header.hop_limit = hop_limit;
  header.flags = flags;
  return header;
}

TEST(Decision, DeliversOwnLids) {
  for (unsigned way : {0u, 1u}) {
    EXPECT_EQ(decide_received(ring(), kBoth, header_to(1, way)).verdict, Verdict::deliver);
    EXPECT_EQ(decide_received(ring(), 0, header_to(1, way, 0)).verdict, Verdict::deliver)
        << "neither hop limit nor dead ports matter to what has arrived";
  }
}

TEST(Decision, NothingIsOwnBeforeTheFirstAgreement) {
  routing::ForwardingState state;
  const Decision decision = decide_received(state, kBoth, header_to(0, 0));
  EXPECT_EQ(decision.verdict, Verdict::drop);
  EXPECT_EQ(decision.reason, HostCounter::drop_no_route);
}

TEST(Decision, RelaysByTheWayInTheLid) {
  const Decision right = decide_received(ring(), kBoth, header_to(2, 0));
  EXPECT_EQ(right.verdict, Verdict::send);
  EXPECT_EQ(right.egress, kRight);
  EXPECT_FALSE(right.turn);
  EXPECT_EQ(decide_received(ring(), kBoth, header_to(2, 1)).egress, kLeft);
  EXPECT_EQ(decide_received(ring(), kBoth, header_to(2, 1, 10, FrameHeader::kTurned)).egress, kLeft)
      << "a turned frame goes on";
}

TEST(Decision, TurnsRoundOnceAtADeadPort) {
  const Decision turned = decide_received(ring(), port_bit(kLeft), header_to(2, 0));
  EXPECT_EQ(turned.verdict, Verdict::send);
  EXPECT_EQ(turned.egress, kLeft);
  EXPECT_TRUE(turned.turn);

  const Decision again = decide_received(ring(), port_bit(kLeft), header_to(2, 0, 10, FrameHeader::kTurned));
  EXPECT_EQ(again.verdict, Verdict::drop);
  EXPECT_EQ(again.reason, HostCounter::drop_turned_twice);
}

TEST(Decision, AMissingWayCountsAsADeadPort) {
  const Decision decision = decide_received(ring(), kBoth, header_to(4, 1));
  EXPECT_EQ(decision.verdict, Verdict::send);
  EXPECT_EQ(decision.egress, kRight);
  EXPECT_TRUE(decision.turn);
}

TEST(Decision, DropsWithTheReason) {
  EXPECT_EQ(decide_received(ring(), 0, header_to(2, 0)).reason, HostCounter::drop_detached);
  EXPECT_EQ(decide_received(ring(), kBoth, header_to(5, 0)).reason, HostCounter::drop_no_route);
  EXPECT_EQ(decide_received(ring(), kBoth, header_to(20000, 1)).reason, HostCounter::drop_no_route)
      << "beyond the table";
  for (const auto& decision :
       {decide_received(ring(), 0, header_to(2, 0)), decide_received(ring(), kBoth, header_to(20000, 1))})
    EXPECT_EQ(decision.verdict, Verdict::drop);
}

TEST(Decision, HopLimitEndsTransitAndIsAnsweredOnRequest) {
  for (std::uint8_t limit : {0, 1}) {
    const Decision dropped = decide_received(ring(), kBoth, header_to(2, 0, limit));
    EXPECT_EQ(dropped.verdict, Verdict::drop);
    EXPECT_EQ(dropped.reason, HostCounter::drop_hop_limit);
    FrameHeader echo = header_to(2, 0, limit, FrameHeader::kHopLimitEcho);
    EXPECT_EQ(decide_received(ring(), kBoth, echo).verdict, Verdict::drop) << "a packet is not answered";
    echo.kind = FrameClass::echo;
    EXPECT_EQ(decide_received(ring(), kBoth, echo).verdict, Verdict::answer);
  }
  EXPECT_EQ(decide_received(ring(), kBoth, header_to(2, 0, 2)).verdict, Verdict::send);
}

/// Whatever the ports and the frame: a frame never leaves by a dead port, a turned one is never turned, and
/// what can be sent without a turn is.
TEST(Decision, HoldsItsInvariantsForEveryInput) {
  const auto state = ring();
  for (PortMask up = 0; up < 4; ++up)
    for (std::uint16_t lid = 0; lid < 16; ++lid)
      for (bool turned : {false, true}) {
        const Decision decision = decide_egress(state, up, Lid(lid), turned);
        SCOPED_TRACE(testing::Message() << "up " << up << " lid " << lid << " turned " << turned);
        ASSERT_TRUE(decision.verdict == Verdict::send || decision.verdict == Verdict::drop);
        const auto egress_of = [&](unsigned l) {
          return l < state.egress.size() ? state.egress[l] : kNoPort;
        };
        const bool ahead = (up & port_bit(egress_of(lid))) != 0,
                   back = (up & port_bit(egress_of(lid ^ 1u))) != 0;
        EXPECT_EQ(decision.verdict == Verdict::send, ahead || (back && !turned));
        if (decision.verdict != Verdict::send) continue;
        EXPECT_EQ(decision.turn, !ahead);
        EXPECT_EQ(decision.egress, egress_of(decision.turn ? lid ^ 1u : lid));
      }
}

TEST(Decision, HeaderChangesInPlace) {
  FrameHeader header = header_to(3, 0, 7, FrameHeader::kHopLimitEcho);
  header.sequence = 0x12345678;
  header.flow_hash = 99;
  std::array<std::byte, FrameHeader::kSize> frame{};
  header.encode(frame);
  EXPECT_FALSE(is_turned(frame));
  decrement_hop_limit(frame);
  turn(frame);
  EXPECT_TRUE(is_turned(frame));
  EXPECT_EQ(destination_of(frame), lid_of(HostIndex(3), 1));
  const auto changed = FrameHeader::decode(frame);
  ASSERT_TRUE(changed);
  EXPECT_EQ(changed->hop_limit, 6);
  EXPECT_EQ(changed->destination, lid_of(HostIndex(3), 1));
  EXPECT_EQ(changed->flags, FrameHeader::kHopLimitEcho | FrameHeader::kTurned);
  EXPECT_EQ(changed->sequence, header.sequence);
  EXPECT_EQ(changed->flow_hash, header.flow_hash);
  EXPECT_EQ(changed->source, header.source);
}

}  // namespace
}  // namespace fabric::daemon
