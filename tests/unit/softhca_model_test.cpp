// The hardware of the software HCA: links, the agents in the firmware, faults. Against the rules of the
// InfiniBand Architecture volume 1, release 1.3, by section.
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/unit/softhca_fixture.hpp"

namespace fabric::softhca::testing {
namespace {

using Event = std::pair<PortNumber, ibv_event_type>;

class Links : public ModelFixture {};

TEST_F(Links, ComeUpToInitializeByThemselves) {
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_INIT);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
  EXPECT_EQ(shared(port(1, 2)).phys_state, 5u);
  EXPECT_EQ(shared(port(1, 2)).peer, port(2, 1));
  EXPECT_EQ(shared(port(1, 2)).carrier, 1u);
  EXPECT_EQ(shared(port(1, 2)).active_width, 2u);   // 4x
  EXPECT_EQ(shared(port(1, 2)).active_speed, 32u);  // EDR
  EXPECT_EQ(shared(port(1, 1)).state, IBV_PORT_DOWN);
  EXPECT_EQ(shared(port(1, 1)).phys_state, 2u);
  EXPECT_EQ(shared(port(1, 1)).peer, kNoSharedPort);
  EXPECT_EQ(shared(port(1, 1)).carrier, 0u);
}

TEST_F(Links, CutTakesTheLightFromBothEnds) {
  bring_up();
  const auto epoch = shared(port(2, 1)).carrier_epoch.load();
  model.cut(now, 0, false);
  EXPECT_THAT(events, ::testing::UnorderedElementsAre(Event{port(1, 2), IBV_EVENT_PORT_ERR},
                                                      Event{port(2, 1), IBV_EVENT_PORT_ERR}));
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_DOWN);
  EXPECT_EQ(shared(port(2, 1)).carrier_epoch, epoch + 1);
  EXPECT_EQ(shared(port(2, 1)).counters.link_downed, 1u);
  EXPECT_EQ(shared(port(2, 1)).lid, 2u);  // settings survive the link
  model.mend(now, 0);
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_INIT);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
}

TEST_F(Links, SilentCutIsSeenByNobody) {
  bring_up();
  model.cut(now, 0, true);
  EXPECT_TRUE(events.empty());
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_ACTIVE);
  EXPECT_EQ(shared(port(1, 2)).carrier, 0u);
  EXPECT_FALSE(ask(port(1, 2), {2}, smp(kMethodGet, IB_ATTR_NODE_INFO)));
  model.mend(now, 0);
  EXPECT_EQ(shared(port(1, 2)).carrier, 1u);
  EXPECT_TRUE(ask(port(1, 2), {2}, smp(kMethodGet, IB_ATTR_NODE_INFO)));
}

TEST_F(Links, OneWayCable) {
  model.block(now, port(2, 1), true);
  EXPECT_EQ(shared(port(1, 2)).carrier, 1u);
  EXPECT_EQ(shared(port(2, 1)).carrier, 0u);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
  EXPECT_FALSE(ask(port(1, 2), {2}, smp(kMethodGet, IB_ATTR_NODE_INFO)));
  EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 1u);
  EXPECT_EQ(shared(port(1, 2)).counters.rcv_packets, 0u);
}

TEST_F(Links, PowerOffForgetsEverything) {
  bring_up();
  model.set_power(now, 1, false, false);
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_DOWN);
  model.set_power(now, 1, true, false);
  EXPECT_EQ(shared(port(2, 1)).lid, 0u);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
  EXPECT_EQ(shared(port(1, 2)).lid, 1u);
}

TEST_F(Links, SilentDeathIsNoticedWhenThePowerIsBack) {
  bring_up();
  model.set_power(now, 1, false, true);
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_ACTIVE);
  EXPECT_EQ(shared(port(1, 2)).carrier, 0u);
  events.clear();
  model.set_power(now, 1, true, false);
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_INIT);
  EXPECT_EQ(std::count(events.begin(), events.end(), Event{port(1, 2), IBV_EVENT_PORT_ERR}), 2);
}

TEST_F(Links, RecablingMovesTheLink) {
  model.plug(now, port(1, 2), port(1, 1));  // a cable to oneself
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_DOWN);
  EXPECT_EQ(shared(port(1, 2)).peer, port(1, 1));
  const auto peer = ask(port(1, 2), {2}, smp(kMethodGet, IB_ATTR_NODE_INFO));
  ASSERT_TRUE(peer);
  EXPECT_EQ(field(*peer, IB_NODE_LOCAL_PORT_F), 1u);
  EXPECT_THROW(model.plug(now, port(1, 1), port(1, 1)), LabError);
  model.unplug(now, port(1, 1));
  EXPECT_EQ(shared(port(1, 2)).peer, kNoSharedPort);
  EXPECT_TRUE(model.cables().empty());
}

TEST_F(Links, FlapComesBackAfterItsTime) {
  model.flap(now, port(1, 2), std::chrono::milliseconds(50));
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_DOWN);
  advance(std::chrono::milliseconds(49));
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_DOWN);
  advance(std::chrono::milliseconds(1));
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
}

TEST_F(Links, ResetOfTheAdapter) {
  bring_up();
  const std::uint32_t before = shared(port(2, 1)).insertion;
  model.reset_hca(now, 1, 0, std::chrono::milliseconds(50));
  EXPECT_EQ(removed, std::vector<unsigned>{1});
  advance(std::chrono::milliseconds(49));
  EXPECT_EQ(shared(port(2, 1)).insertion, 0u);
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_DOWN);
  EXPECT_TRUE(inserted.empty());
  advance(std::chrono::milliseconds(1));
  EXPECT_EQ(inserted, std::vector<unsigned>{1});
  EXPECT_EQ(shared(port(2, 1)).lid, 0u);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
  EXPECT_NE(shared(port(2, 1)).insertion, before);
  EXPECT_EQ(shared(port(2, 2)).insertion, shared(port(2, 1)).insertion);
  EXPECT_EQ(shared(port(1, 2)).counters.link_downed, 1u);
}

TEST_F(Links, AdapterThatIsTakenOutDoesNothing) {
  bring_up();
  model.remove_hca(now, 1, 0);
  model.remove_hca(now, 1, 0);
  EXPECT_EQ(removed, std::vector<unsigned>{1});
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_DOWN);
  EXPECT_EQ(shared(port(1, 2)).carrier, 0u);
  to_software.clear();
  send_smp(port(2, 1), directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {}));
  advance(std::chrono::milliseconds(10));
  EXPECT_TRUE(to_software.empty());
  model.insert_hca(now, 1, 0);
  EXPECT_EQ(shared(port(1, 2)).state, IBV_PORT_INIT);
}

TEST_F(Links, WhatIsInFlightIsLostWithTheLight) {
  model.set_faults(port(1, 2), {.delay_ns = 1'000'000});
  send_smp(port(1, 2), directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {2}));
  advance(std::chrono::microseconds(999));
  model.cut(now, 0, false);
  model.mend(now, 0);
  advance(std::chrono::milliseconds(10));
  EXPECT_TRUE(to_software.empty());
  EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 0u);
}

TEST_F(Links, DelayAndRate) {
  // 288 octets at 1 Mbit/s take 2.304 ms; the second waits for the first.
  model.set_faults(port(1, 2), {.delay_ns = 1'000'000, .rate_limit = 1'000'000});
  for (int i = 0; i < 2; ++i) send_smp(port(1, 2), directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {2}));
  advance(std::chrono::microseconds(3303));
  EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 0u);
  advance(std::chrono::microseconds(1));
  EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 1u);
  advance(std::chrono::microseconds(2303));
  EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 1u);
  advance(std::chrono::microseconds(1));
  EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 2u);
}

TEST_F(Links, LossAndCorruptionAsManyAsAskedFor) {
  model.set_faults(port(1, 2), {.loss_ppm = 100'000, .corrupt_ppm = 200'000});
  for (int i = 0; i < 10'000; ++i) send_smp(port(1, 2), directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {2}));
  const double arrived = static_cast<double>(shared(port(2, 1)).counters.rcv_packets);
  EXPECT_NEAR(arrived, 7200, 150);  // 0.9 * 0.8, three standard deviations
  EXPECT_NEAR(static_cast<double>(shared(port(2, 1)).counters.rcv_errors), 1800, 130);
}

TEST_F(Links, ContentIsWrongInOneOctetAsOftenAsAskedFor) {
  const Mad request = smp(kMethodGet, IB_ATTR_NODE_INFO);
  const auto right = ask(port(1, 2), {2}, request);
  ASSERT_TRUE(right);
  model.set_faults(port(2, 1), {.mad_corrupt_ppm = 500'000});
  unsigned wrong = 0;
  for (int i = 0; i < 1000; ++i) {
    const auto response = ask(port(1, 2), {2}, request);
    // Where the route was hit, the adapter drops it.
    if (response == right) continue;
    ++wrong;
    if (response) {
      const auto [here, there] = std::mismatch(right->begin(), right->end(), response->begin());
      EXPECT_TRUE(std::equal(here + 1, right->end(), there + 1));
    }
  }
  EXPECT_NEAR(wrong, 500, 50);
  EXPECT_EQ(shared(port(1, 2)).counters.rcv_packets, 1001u);
  EXPECT_EQ(shared(port(1, 2)).counters.rcv_errors, 0u);
}

// What is left to chance is the same in every run with the same seed.
TEST(Seeds, DecideWhatIsLost) {
  struct Run : ModelFixture {
    explicit Run(std::uint64_t seed) : ModelFixture(2, seed) {}
    void TestBody() override {}
    std::vector<bool> arrivals() {
      model.set_faults(port(1, 2), {.loss_ppm = 300'000, .corrupt_ppm = 200'000});
      std::vector<bool> arrived;
      for (int i = 0; i < 200; ++i) {
        const std::uint64_t before = shared(port(2, 1)).counters.rcv_packets;
        send_smp(port(1, 2), directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {2}));
        arrived.push_back(shared(port(2, 1)).counters.rcv_packets != before);
      }
      return arrived;
    }
  };
  EXPECT_EQ(Run(5).arrivals(), Run(5).arrivals());
  EXPECT_NE(Run(5).arrivals(), Run(6).arrivals());
}

// 14.2.2, as far as it concerns a node that does not forward.
class DirectedRoute : public ModelFixture {
 public:
  DirectedRoute() : ModelFixture(3) {}
};

TEST_F(DirectedRoute, ToItselfAndToTheNeighbour) {
  const auto own = ask(port(1, 2), {}, smp(kMethodGet, IB_ATTR_NODE_INFO));
  ASSERT_TRUE(own);
  EXPECT_EQ(field(*own, IB_NODE_LOCAL_PORT_F), 2u);
  EXPECT_EQ((*own)[kStatus] & kDirectionBit, kDirectionBit);
  EXPECT_EQ((*own)[kHopPointer], 0);
  const auto peer = ask(port(1, 2), {2}, smp(kMethodGet, IB_ATTR_NODE_INFO));
  ASSERT_TRUE(peer);
  EXPECT_EQ(::mad_get_field64(const_cast<std::uint8_t*>(peer->data()), kSmpData, IB_NODE_PORT_GUID_F),
            shared(port(2, 1)).guid);
  EXPECT_EQ((*peer)[kReturnPath + 1], 1);
  EXPECT_EQ((*peer)[kHopPointer], 0);
}

TEST_F(DirectedRoute, NothingIsForwarded) {
  const Mad request = smp(kMethodGet, IB_ATTR_NODE_INFO);
  EXPECT_FALSE(ask(port(1, 2), {2, 2}, request));  // h3 is there, but h2 is no switch
  EXPECT_FALSE(ask(port(1, 2), {1}, request));     // the path begins at another port
  EXPECT_FALSE(ask(port(1, 1), {1}, request));     // no cable
}

TEST_F(DirectedRoute, UnreasonableHopPointersAreDiscarded) {
  const Mad request = directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {2});
  for (unsigned pointer = 0; pointer < 256; ++pointer) {
    Mad mad = request;
    mad[kHopPointer] = static_cast<std::uint8_t>(pointer);
    to_software.clear();
    send_smp(port(1, 2), mad);
    // Only 0 goes out.
    EXPECT_EQ(shared(port(2, 1)).counters.rcv_packets, 1u) << pointer;
    EXPECT_EQ(to_software.size(), pointer == 0 ? 1u : 0u) << pointer;
  }
  Mad long_path = request;
  long_path[kHopCount] = 64;
  to_software.clear();
  send_smp(port(1, 2), long_path);
  EXPECT_TRUE(to_software.empty());
}

TEST_F(DirectedRoute, LidRoutedPartsNeedASwitch) {
  Mad mad = directed(smp(kMethodGet, IB_ATTR_NODE_INFO), {2});
  store16(mad, kDrDlid, 5);
  send_smp(port(1, 2), mad);
  EXPECT_TRUE(to_software.empty());
}

class Agent : public ModelFixture {
 public:
  const PortNumber manager = port(1, 2);
};

TEST_F(Agent, StatusOfWhatItDoesNotKnow) {
  const auto of = [&](Mad mad) { return status(ask(manager, {2}, mad).value_or(Mad{})); };
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_NODE_INFO)), 0);
  EXPECT_EQ(of(smp(kMethodSet, IB_ATTR_NODE_INFO)), kStatusBadAttribute);
  EXPECT_EQ(of(smp(kMethodSet, IB_ATTR_NODE_DESC)), kStatusBadAttribute);
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_SWITCH_INFO)), kStatusBadAttribute);
  EXPECT_EQ(of(smp(kMethodGet, 0xFF90)), kStatusBadAttribute);
  Mad version = smp(kMethodGet, IB_ATTR_NODE_INFO);
  version[kClassVersion] = 2;
  EXPECT_EQ(of(version), kStatusBadVersion);
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_PORT_INFO, 2)), 0);
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_PORT_INFO, 3)), kStatusBadValue);
  EXPECT_EQ(of(smp(kMethodSet, IB_ATTR_PORT_INFO, 2)), kStatusBadValue);  // it came in on port 1
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_PKEY_TBL, 1)), kStatusBadValue);
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_GUID_INFO, 2)), kStatusBadValue);
  EXPECT_EQ(of(smp(kMethodGet, IB_ATTR_VL_ARBITRATION, 2 << 16)), kStatusBadValue);
}

TEST_F(Agent, UnknownMethodIsAnsweredWithItsResponse) {
  send_smp(manager, directed(smp(0x12, IB_ATTR_NODE_INFO), {2}));
  ASSERT_EQ(to_software.size(), 1u);
  EXPECT_EQ(to_software[0].second.mad[kMethod], 0x92);
  EXPECT_EQ(status(to_software[0].second.mad), kStatusBadMethod);
}

TEST_F(Agent, SmInfoAndTrapsAreForSoftware) {
  send_smp(manager, directed(smp(kMethodGet, IB_ATTR_SMINFO), {2}));
  send_smp(manager, smp(kMethodTrap, 2));
  ASSERT_EQ(to_software.size(), 2u);
  EXPECT_EQ(to_software[0].first, port(2, 1));
  EXPECT_EQ(to_software[1].first, port(2, 1));
}

// 7.2.7: every state against every request.
TEST_F(Agent, PortStateTransitions) {
  struct Case {
    std::uint32_t present, requested;
    bool legal;
    std::uint32_t after;
  };
  const std::vector<Case> cases = {
      {IBV_PORT_INIT, IBV_PORT_NOP, true, IBV_PORT_INIT},
      {IBV_PORT_INIT, IBV_PORT_DOWN, true, IBV_PORT_INIT},  // down, trained anew
      {IBV_PORT_INIT, IBV_PORT_INIT, false, IBV_PORT_INIT},
      {IBV_PORT_INIT, IBV_PORT_ARMED, true, IBV_PORT_ARMED},
      {IBV_PORT_INIT, IBV_PORT_ACTIVE, false, IBV_PORT_INIT},
      {IBV_PORT_ARMED, IBV_PORT_NOP, true, IBV_PORT_ARMED},
      {IBV_PORT_ARMED, IBV_PORT_DOWN, true, IBV_PORT_INIT},
      {IBV_PORT_ARMED, IBV_PORT_INIT, false, IBV_PORT_ARMED},
      {IBV_PORT_ARMED, IBV_PORT_ARMED, true, IBV_PORT_ARMED},
      {IBV_PORT_ARMED, IBV_PORT_ACTIVE, true, IBV_PORT_ACTIVE},
      {IBV_PORT_ACTIVE, IBV_PORT_NOP, true, IBV_PORT_ACTIVE},
      {IBV_PORT_ACTIVE, IBV_PORT_DOWN, true, IBV_PORT_INIT},
      {IBV_PORT_ACTIVE, IBV_PORT_INIT, false, IBV_PORT_ACTIVE},
      {IBV_PORT_ACTIVE, IBV_PORT_ARMED, false, IBV_PORT_ACTIVE},
      {IBV_PORT_ACTIVE, IBV_PORT_ACTIVE, true, IBV_PORT_ACTIVE},
      {IBV_PORT_ACTIVE, 7, false, IBV_PORT_ACTIVE},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.present) + " -> " + std::to_string(c.requested));
    ASSERT_EQ(set_field(manager, {}, IB_PORT_STATE_F, IBV_PORT_DOWN), 0);
    for (std::uint32_t state = IBV_PORT_ARMED; state <= c.present; ++state) {
      ASSERT_EQ(set_field(manager, {2}, IB_PORT_STATE_F, state), 0);
    }
    EXPECT_EQ(set_field(manager, {2}, IB_PORT_STATE_F, c.requested), c.legal ? 0 : kStatusBadValue);
    EXPECT_EQ(shared(port(2, 1)).state, c.after);
  }
}

TEST_F(Agent, DisabledUntilEnabled) {
  EXPECT_EQ(set_field(manager, {}, IB_PORT_PHYS_STATE_F, 3), 0);
  EXPECT_EQ(shared(manager).phys_state, 3u);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_DOWN);
  model.cut(now, 0, false);
  model.mend(now, 0);
  EXPECT_EQ(shared(manager).phys_state, 3u);
  EXPECT_EQ(set_field(manager, {}, IB_PORT_PHYS_STATE_F, 2), 0);
  EXPECT_EQ(shared(manager).state, IBV_PORT_INIT);
  EXPECT_EQ(shared(port(2, 1)).state, IBV_PORT_INIT);
}

TEST_F(Agent, LidsAreChecked) {
  const auto set = [&](std::uint32_t lid, std::uint32_t lmc) {
    const auto response = set_port_info(manager, {2}, [&](Mad& mad) {
      ::mad_set_field(mad.data(), kSmpData, IB_PORT_LID_F, lid);
      ::mad_set_field(mad.data(), kSmpData, IB_PORT_LMC_F, lmc);
    });
    return response ? status(*response) : 0xFFFF;
  };
  EXPECT_EQ(set(0, 0), 0);  // as it is
  EXPECT_EQ(set(0xC000, 0), kStatusBadValue);
  EXPECT_EQ(set(0xFFFF, 0), kStatusBadValue);
  EXPECT_EQ(set(6, 2), kStatusBadValue);  // a block of four begins at a multiple of four
  EXPECT_EQ(set(8, 2), 0);
  EXPECT_EQ(set(0, 2), kStatusBadValue);
  EXPECT_EQ(shared(port(2, 1)).lid, 8u);
  for (const std::uint16_t lid : {7, 8, 11, 12}) {
    EXPECT_EQ(is_lid_of(shared(port(2, 1)), lid), lid == 8 || lid == 11) << lid;
  }
}

TEST_F(Agent, NothingChangesWhereOneFieldIsWrong) {
  const auto response = set_port_info(manager, {2}, [&](Mad& mad) {
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_LID_F, 5);
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_NEIGHBOR_MTU_F, 6);
  });
  ASSERT_TRUE(response);
  EXPECT_EQ(status(*response), kStatusBadValue);
  EXPECT_EQ(shared(port(2, 1)).lid, 0u);
}

TEST_F(Agent, EventsOfASet) {
  events.clear();
  set_port_info(manager, {2}, [&](Mad& mad) {
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_LID_F, 5);
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_SMLID_F, 4);
    ::mad_set_field64(mad.data(), kSmpData, IB_PORT_GID_PREFIX_F, 0xFEC0000000000001);
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_CLIENT_REREG_F, 1);
  });
  const PortNumber p = port(2, 1);
  EXPECT_EQ(events, (std::vector<Event>{{p, IBV_EVENT_LID_CHANGE},
                                        {p, IBV_EVENT_SM_CHANGE},
                                        {p, IBV_EVENT_GID_CHANGE},
                                        {p, IBV_EVENT_CLIENT_REREGISTER}}));
  EXPECT_EQ(shared(p).gid_prefix, 0xFEC0000000000001u);
}

TEST_F(Agent, ReadersSeeAllOrNothing) {
  const std::uint32_t before = shared(port(2, 1)).change;
  bring_up();
  EXPECT_GT(shared(port(2, 1)).change, before);
  EXPECT_EQ(shared(port(2, 1)).change % 2, 0u);
}

TEST_F(Agent, WidthAndSpeedAreNegotiatedWhenTheLinkIsTrained) {
  EXPECT_EQ(set_field(manager, {2}, IB_PORT_LINK_WIDTH_ENABLED_F, 1), 0);
  EXPECT_EQ(shared(manager).active_width, 2u);  // not before
  EXPECT_EQ(set_field(manager, {}, IB_PORT_STATE_F, IBV_PORT_DOWN), 0);
  EXPECT_EQ(shared(manager).active_width, 1u);
  EXPECT_EQ(shared(port(2, 1)).active_width, 1u);
  EXPECT_EQ(set_field(manager, {}, IB_PORT_LINK_WIDTH_ENABLED_F, 4), kStatusBadValue);  // 8x
  EXPECT_EQ(set_field(manager, {2}, IB_PORT_LINK_WIDTH_ENABLED_F, 255), 0);
  // Nothing in common: no link.
  EXPECT_EQ(set_field(manager, {2}, IB_PORT_LINK_SPEED_ENABLED_F, 1), 0);
  EXPECT_EQ(set_field(manager, {}, IB_PORT_LINK_SPEED_ENABLED_F, 4), 0);
  EXPECT_EQ(set_field(manager, {}, IB_PORT_STATE_F, IBV_PORT_DOWN), 0);
  EXPECT_EQ(shared(manager).state, IBV_PORT_DOWN);
  EXPECT_EQ(shared(manager).phys_state, 2u);
  EXPECT_EQ(set_field(manager, {}, IB_PORT_LINK_SPEED_ENABLED_F, 15), 0);
  model.mend(now, 0);
  EXPECT_EQ(shared(manager).state, IBV_PORT_INIT);
}

TEST_F(Agent, PkeyTable) {
  Mad set = smp(kMethodSet, IB_ATTR_PKEY_TBL);
  store16(set, kSmpData, 0xFFFF);
  store16(set, kSmpData + 2, 0x8001);
  events.clear();
  ASSERT_TRUE(ask(manager, {2}, set));
  EXPECT_EQ(events, (std::vector<Event>{{port(2, 1), IBV_EVENT_PKEY_CHANGE}}));
  EXPECT_EQ(shared(port(2, 1)).pkeys[1], 0x8001);
  const auto got = ask(manager, {2}, smp(kMethodGet, IB_ATTR_PKEY_TBL));
  ASSERT_TRUE(got);
  EXPECT_EQ(load16(*got, kSmpData + 2), 0x8001);
  events.clear();
  ASSERT_TRUE(ask(manager, {2}, set));
  EXPECT_TRUE(events.empty());  // nothing has changed
}

TEST_F(Agent, GuidInfoKeepsTheFirst) {
  Mad set = smp(kMethodSet, IB_ATTR_GUID_INFO);
  store64(set, kSmpData, 0x1111);
  store64(set, kSmpData + 8, 0x2222);
  ASSERT_TRUE(ask(manager, {2}, set));
  EXPECT_EQ(shared(port(2, 1)).guids[0], shared(port(2, 1)).guid);
  EXPECT_EQ(shared(port(2, 1)).guids[1], 0x2222u);
}

// 14.2.4, the table of protection levels: may one read without the key, and is the key shown?
TEST_F(Agent, MkeyProtection) {
  constexpr std::uint64_t kKey = 0x123456789ABCDEF0;
  std::uint64_t key = 0;
  for (std::uint32_t level = 0; level < 4; ++level) {
    SCOPED_TRACE(level);
    const auto set = set_port_info(
        manager, {2},
        [&](Mad& mad) {
          ::mad_set_field64(mad.data(), kSmpData, IB_PORT_MKEY_F, kKey);
          ::mad_set_field(mad.data(), kSmpData, IB_PORT_MKEY_PROT_BITS_F, level);
          ::mad_set_field(mad.data(), kSmpData, IB_PORT_MKEY_VIOL_F, 0);
        },
        key);
    ASSERT_TRUE(set);
    ASSERT_EQ(status(*set), 0);
    key = kKey;
    const auto read = ask(manager, {2}, smp(kMethodGet, IB_ATTR_PORT_INFO));
    EXPECT_EQ(read.has_value(), level < 2);
    if (read) {
      EXPECT_EQ(load64(*read, kSmpData), level == 0 ? kKey : 0);
    }
    EXPECT_FALSE(ask(manager, {2}, smp(kMethodSet, IB_ATTR_PKEY_TBL)));
    Mad with_key = smp(kMethodGet, IB_ATTR_PORT_INFO);
    store64(with_key, kMkey, kKey);
    const auto allowed = ask(manager, {2}, with_key);
    ASSERT_TRUE(allowed);
    EXPECT_EQ(load64(*allowed, kSmpData), kKey);
    EXPECT_EQ(field(*allowed, IB_PORT_MKEY_VIOL_F), level < 2 ? 1u : 2u);
  }
}

TEST_F(Agent, LeaseOfTheMkeyRunsOut) {
  set_port_info(manager, {2}, [&](Mad& mad) {
    ::mad_set_field64(mad.data(), kSmpData, IB_PORT_MKEY_F, 0x77);
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_MKEY_PROT_BITS_F, 2);
    ::mad_set_field(mad.data(), kSmpData, IB_PORT_MKEY_LEASE_F, 15);
  });
  const Mad read = smp(kMethodGet, IB_ATTR_PORT_INFO);
  Mad with_key = read;
  store64(with_key, kMkey, 0x77);
  EXPECT_FALSE(ask(manager, {2}, read));  // begins the countdown
  advance(std::chrono::seconds(14));
  EXPECT_TRUE(ask(manager, {2}, with_key));  // the manager is alive: the countdown ends
  advance(std::chrono::seconds(2));
  EXPECT_FALSE(ask(manager, {2}, read));
  advance(std::chrono::seconds(15));
  const auto got = ask(manager, {2}, read);
  ASSERT_TRUE(got);
  EXPECT_EQ(load64(*got, kSmpData), 0x77u);
  EXPECT_EQ(field(*got, IB_PORT_MKEY_PROT_BITS_F), 0u);
}

class Traps : public ModelFixture {
 public:
  Traps() { bring_up(); }

  std::vector<Mad> taken() {
    std::vector<Mad> traps;
    for (const auto& [number, packet] : std::exchange(to_software, {})) {
      EXPECT_EQ(number, port(1, 2));  // where the manager's LID is
      EXPECT_EQ(packet.mad[kMethod], kMethodTrap);
      traps.push_back(packet.mad);
    }
    return traps;
  }
};

TEST_F(Traps, BadMkeyIsRepeatedUntilRepressed) {
  set_port_info(port(1, 2), {2},
                [&](Mad& mad) { ::mad_set_field64(mad.data(), kSmpData, IB_PORT_MKEY_F, 0x77); });
  to_software.clear();
  send_smp(port(1, 2), directed(smp(kMethodSet, IB_ATTR_PKEY_TBL, 0xAB), {2}));
  const auto first = taken();
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(field(first[0], IB_NOTICE_TRAP_NUMBER_F), 256u);
  EXPECT_EQ(field(first[0], IB_NOTICE_ISSUER_LID_F), 2u);
  EXPECT_EQ(field(first[0], IB_NOTICE_PRODUCER_F), 1u);
  const std::size_t details = kSmpData + 10;
  EXPECT_EQ(load16(first[0], details + 2), 1);  // who it was
  EXPECT_EQ(first[0][details + 6], kMethodSet);
  EXPECT_EQ(load16(first[0], details + 8), IB_ATTR_PKEY_TBL);
  EXPECT_EQ(load32(first[0], details + 10), 0xABu);
  // SubnetTimeOut 18 is 1.07 s.
  advance(std::chrono::milliseconds(1073));
  EXPECT_EQ(taken().size(), 0u);
  advance(std::chrono::milliseconds(1));
  EXPECT_EQ(taken().size(), 1u);
  Mad repress = first[0];
  repress[kMethod] = kMethodTrapRepress;
  send_smp(port(1, 2), repress, 2);  // without the M_Key: ignored, and a violation of its own
  advance(std::chrono::milliseconds(1100));
  EXPECT_GE(taken().size(), 1u);
  for (std::uint64_t transaction = 1; transaction < 10; ++transaction) {
    store64(repress, kTransaction, transaction);
    store64(repress, kMkey, 0x77);
    send_smp(port(1, 2), repress, 2);
  }
  taken();
  advance(std::chrono::seconds(10));
  EXPECT_EQ(taken().size(), 0u);
  EXPECT_FALSE(model.next_timer());
}

TEST_F(Traps, LocalChanges) {
  model.hold_issm(now, port(2, 1), 1);
  auto traps = taken();
  ASSERT_EQ(traps.size(), 1u);
  EXPECT_EQ(field(traps[0], IB_NOTICE_TRAP_NUMBER_F), 144u);
  EXPECT_EQ(field(traps[0], IB_NOTICE_DATA_144_LID_F), 2u);
  EXPECT_EQ(field(traps[0], IB_NOTICE_DATA_144_CAPMASK_F), shared(port(2, 1)).cap_mask);
  EXPECT_EQ(shared(port(2, 1)).cap_mask & kIsSm, kIsSm);
  model.hold_issm(now, port(2, 1), 1);  // held twice: nothing changes
  EXPECT_EQ(taken().size(), 0u);
  model.describe_node(now, 1, 0, "new name");
  traps = taken();
  ASSERT_EQ(traps.size(), 1u);
  EXPECT_EQ(traps[0][kSmpData + 10 + 5], 1);
  EXPECT_EQ(traps[0][kSmpData + 10 + 11], kNodeDescriptionChange);
}

TEST_F(Traps, LinkErrors) {
  model.raise_error_counter(now, port(2, 1), kTrapLinkIntegrity);
  const auto traps = taken();
  ASSERT_EQ(traps.size(), 1u);
  EXPECT_EQ(field(traps[0], IB_NOTICE_TRAP_NUMBER_F), 129u);
  EXPECT_EQ(load16(traps[0], kSmpData + 10 + 2), 2);
  EXPECT_EQ(traps[0][kSmpData + 10 + 4], 1);  // port number
  EXPECT_EQ(shared(port(2, 1)).counters.local_link_integrity_errors, 1u);
}

TEST_F(Traps, NobodyIsToldWithoutAManager) {
  model.cut(now, 0, false);
  model.raise_error_counter(now, port(2, 1), kTrapLinkIntegrity);
  EXPECT_FALSE(model.next_timer());
}

// General management packets, QP1.
class Gmps : public ModelFixture {
 public:
  static Mad pma(std::uint8_t method, std::uint16_t attribute, std::uint8_t selected = 1) {
    Mad mad = smp(method, attribute);
    mad[kMgmtClass] = kClassPerformance;
    ::mad_set_field(mad.data(), IB_PC_DATA_OFFS, IB_PC_PORT_SELECT_F, selected);
    return mad;
  }
  static std::uint32_t counter(const Mad& mad, MAD_FIELDS name) {
    return ::mad_get_field(const_cast<std::uint8_t*>(mad.data()), IB_PC_DATA_OFFS, name);
  }
  std::optional<Mad> ask_gmp(PortNumber from, std::uint16_t dlid, const Mad& mad,
                             std::uint16_t pkey = 0xFFFF) {
    to_software.clear();
    model.transmit(now, from,
                   {.dst_qp = 1,
                    .src_qp = 1,
                    .dlid = dlid,
                    .slid = static_cast<std::uint16_t>(shared(from).lid),
                    .pkey = pkey,
                    .mad = mad});
    for (const auto& [port, packet] : to_software) {
      if (port == from && packet.mad[kMethod] == kMethodGetResp) return packet.mad;
    }
    return std::nullopt;
  }
};

TEST_F(Gmps, PassBetweenActivePortsWithMatchingLids) {
  const Mad request = pma(kMethodGet, IB_GSI_PORT_COUNTERS);
  EXPECT_FALSE(ask_gmp(port(1, 2), 2, request));  // not Active
  bring_up();
  EXPECT_TRUE(ask_gmp(port(1, 2), 2, request));
  EXPECT_TRUE(ask_gmp(port(1, 2), 1, request));  // itself
  EXPECT_FALSE(ask_gmp(port(1, 2), 3, request));
  EXPECT_FALSE(ask_gmp(port(1, 2), kPermissiveLid, request));
  ASSERT_EQ(set_field(port(1, 2), {2}, IB_PORT_STATE_F, IBV_PORT_DOWN), 0);
  EXPECT_FALSE(ask_gmp(port(1, 2), 2, request));  // both are at Initialize again
}

TEST_F(Gmps, PartitionsAreKeptApart) {
  bring_up();
  const Mad request = pma(kMethodGet, IB_GSI_PORT_COUNTERS);
  EXPECT_TRUE(ask_gmp(port(1, 2), 2, request, 0x7FFF));  // limited to full
  EXPECT_FALSE(ask_gmp(port(1, 2), 2, request, 0x8001));
  EXPECT_EQ(shared(port(2, 1)).pkey_violations, 1u);
  ASSERT_EQ(to_software.size(), 1u);  // trap 257
  EXPECT_EQ(field(to_software[0].second.mad, IB_NOTICE_TRAP_NUMBER_F), 257u);
  EXPECT_EQ(load32(to_software[0].second.mad, kSmpData + 10 + 6), 0x8001u);
  // Limited members do not talk to each other.
  Mad table = smp(kMethodSet, IB_ATTR_PKEY_TBL);
  store16(table, kSmpData, 0x7FFF);
  ASSERT_TRUE(ask(port(1, 2), {2}, table));
  EXPECT_FALSE(ask_gmp(port(1, 2), 2, request, 0x7FFF));
  EXPECT_TRUE(ask_gmp(port(1, 2), 2, request, 0xFFFF));
}

// Traps 257 and 258 (14.2.5.1): who sent what to whom, with which key. Of data the sender's process reports
// it.
TEST_F(Gmps, WrongKeysOfDataAreToldToTheManager) {
  bring_up();
  for (const std::uint16_t trap : {kTrapBadPkey, kTrapBadQkey}) {
    to_software.clear();
    const KeyViolation violation{
        .slid = 1, .dlid = 2, .key = 0x8001, .sl = 3, .src_qp = 0x123456, .dst_qp = 0xABCDEF};
    model.key_violation(now, port(2, 1), trap, violation);
    ASSERT_EQ(to_software.size(), 1u);
    EXPECT_EQ(to_software[0].first, port(1, 2));  // where the manager is
    const Mad& mad = to_software[0].second.mad;
    EXPECT_EQ(field(mad, IB_NOTICE_TRAP_NUMBER_F), trap);
    EXPECT_EQ(field(mad, IB_NOTICE_ISSUER_LID_F), 2u);
    const std::size_t details = kSmpData + 10;
    EXPECT_EQ(load16(mad, details + 2), 1);
    EXPECT_EQ(load16(mad, details + 4), 2);
    EXPECT_EQ(load32(mad, details + 6), 0x8001u);
    EXPECT_EQ(load32(mad, details + 10), 0x30123456u);
    EXPECT_EQ(load32(mad, details + 14), 0xABCDEFu);
  }
  EXPECT_EQ(shared(port(2, 1)).pkey_violations, 1u);
  EXPECT_EQ(shared(port(2, 1)).qkey_violations, 1u);
}

TEST_F(Gmps, TrapsOfMulticastPkeysCanBeSuppressed) {
  bring_up();
  const KeyViolation violation{.slid = 1, .dlid = 0xC001, .key = 0x8001};
  ASSERT_EQ(set_field(port(1, 2), {2}, IB_PORT_MCAST_PKEY_SUPR_ENAB_F, 1), 0);
  to_software.clear();
  model.key_violation(now, port(2, 1), kTrapBadPkey, violation);
  EXPECT_TRUE(to_software.empty());
  EXPECT_EQ(shared(port(2, 1)).pkey_violations, 1u);
  model.key_violation(now, port(2, 1), kTrapBadQkey, violation);
  EXPECT_EQ(to_software.size(), 1u);
}

TEST_F(Gmps, CountersSaturate) {
  bring_up();
  SharedCounters& counters = shared(port(2, 1)).counters;
  counters.symbol_errors = 70'000;                    // 16 bits
  counters.link_downed = 300;                         // 8 bits
  counters.local_link_integrity_errors = 20;          // 4 bits
  counters.xmit_data = 4 * (std::uint64_t{1} << 32);  // 32 bits, in units of four octets
  counters.rcv_data = 4 * 1000;
  const auto got = ask_gmp(port(1, 2), 2, pma(kMethodGet, IB_GSI_PORT_COUNTERS));
  ASSERT_TRUE(got);
  EXPECT_EQ(counter(*got, IB_PC_ERR_SYM_F), 65'535u);
  EXPECT_EQ(counter(*got, IB_PC_LINK_DOWNED_F), 255u);
  EXPECT_EQ(counter(*got, IB_PC_ERR_LOCALINTEG_F), 15u);
  EXPECT_EQ(counter(*got, IB_PC_XMT_BYTES_F), 0xFFFFFFFFu);
  EXPECT_EQ(counter(*got, IB_PC_RCV_BYTES_F), 1000u + kMadPacketOctets / 4);  // and the request itself
  const auto extended = ask_gmp(port(1, 2), 2, pma(kMethodGet, IB_GSI_PORT_COUNTERS_EXT));
  ASSERT_TRUE(extended);
  EXPECT_EQ(
      ::mad_get_field64(const_cast<std::uint8_t*>(extended->data()), IB_PC_DATA_OFFS, IB_PC_EXT_XMT_BYTES_F),
      (std::uint64_t{1} << 32) + kMadPacketOctets / 4);
}

TEST_F(Gmps, SetClearsWhatIsSelected) {
  bring_up();
  SharedCounters& counters = shared(port(2, 1)).counters;
  counters.symbol_errors = 5;
  counters.rcv_errors = 6;
  counters.xmit_wait = 7;
  Mad clear = pma(kMethodSet, IB_GSI_PORT_COUNTERS);
  ::mad_set_field(clear.data(), IB_PC_DATA_OFFS, IB_PC_COUNTER_SELECT_F, 1u << 0);
  ::mad_set_field(clear.data(), IB_PC_DATA_OFFS, IB_PC_COUNTER_SELECT2_F, 1);
  ::mad_set_field(clear.data(), IB_PC_DATA_OFFS, IB_PC_ERR_SYM_F, 2);  // need not be zero
  const auto got = ask_gmp(port(1, 2), 2, clear);
  ASSERT_TRUE(got);
  EXPECT_EQ(counter(*got, IB_PC_ERR_SYM_F), 2u);
  EXPECT_EQ(counter(*got, IB_PC_ERR_RCV_F), 6u);
  EXPECT_EQ(counter(*got, IB_PC_XMT_WAIT_F), 0u);
  counters.symbol_errors += 1;
  EXPECT_EQ(counter(*ask_gmp(port(1, 2), 2, pma(kMethodGet, IB_GSI_PORT_COUNTERS)), IB_PC_ERR_SYM_F), 3u);
}

TEST_F(Gmps, PortSelection) {
  bring_up();
  shared(port(2, 1)).counters.symbol_errors = 5;
  shared(port(2, 2)).counters.symbol_errors = 7;
  const auto of = [&](std::uint8_t selected) {
    return ask_gmp(port(1, 2), 2, pma(kMethodGet, IB_GSI_PORT_COUNTERS, selected)).value_or(Mad{});
  };
  EXPECT_EQ(counter(of(1), IB_PC_ERR_SYM_F), 5u);
  EXPECT_EQ(counter(of(2), IB_PC_ERR_SYM_F), 7u);
  EXPECT_EQ(counter(of(255), IB_PC_ERR_SYM_F), 12u);
  EXPECT_EQ(status(of(0)), kStatusBadValue);
  EXPECT_EQ(status(of(3)), kStatusBadValue);
  EXPECT_EQ(status(ask_gmp(port(1, 2), 2, pma(kMethodGet, 0x36)).value_or(Mad{})), kStatusBadAttribute);
}

TEST(LabFile, SaysWhatIsWrong) {
  const auto problem = [](const char* text) -> std::string {
    try {
      parse_lab(text);
      return "";
    } catch (const LabError& error) {
      return error.what();
    }
  };
  const std::string good = R"({"hosts": [{"name": "a", "hcas": [{"ports": 2}, {"ports": 1}]}], "cables": )";
  EXPECT_EQ(problem((good + R"([["a/1", "a/1/1"]]})").c_str()), "");
  EXPECT_EQ(problem((good + R"([["a/1", "a/1"]]})").c_str()), "cables[0]: a/1 has a cable already");
  EXPECT_EQ(problem((good + R"([["a/3", "a/1"]]})").c_str()),
            "cables[0]: end \"a/3\": the HCA has no such port");
  EXPECT_EQ(problem((good + R"([["b/1", "a/1"]]})").c_str()), "cables[0]: there is no host \"b\"");
  EXPECT_EQ(problem((good + R"([], "x": 1})").c_str()), "lab: unknown key \"x\"");
  EXPECT_EQ(problem(R"({"hosts": []})"), "lab: \"cables\" is missing");
  EXPECT_EQ(problem(R"({"hosts": [{"name": "a", "hcas": [{"ports": 0}]}], "cables": []})"),
            "hosts[0].hcas[0]: \"ports\" must be 1 to 15");
  EXPECT_NE(problem("{").find("not JSON"), std::string::npos);
}

}  // namespace
}  // namespace fabric::softhca::testing
