// The subnet manager core: two of them, or one and a scripted other, on a simulated cable.
#include "fabricd/subnet/subnet_manager.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/unit/subnet_simulation.hpp"

namespace fabric::daemon::subnet {
namespace {

constexpr Guid kLowNode{0x10}, kLowPort{0x11}, kHighNode{0x20}, kHighPort{0x22};

Cable make_cable(std::uint64_t seed = 1) {
  return Cable(Sma(kLowNode, kLowPort, 1), Sma(kHighNode, kHighPort, 2), seed);
}

std::uint64_t base_seed() {
  const char* text = std::getenv("FABRIC_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 0) : 1;
}

TEST(SubnetManager, BringsAFreshCableToActive) {
  Cable cable = make_cable();
  cable.plug(false);
  cable.start(0);
  cable.start(1);
  const auto took = cable.run_until([&] { return cable.converged(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LT(*took, 10ms);
  EXPECT_EQ(cable.master(), 0) << "the lower port GUID";
  EXPECT_EQ(cable.view(0).bring_up_requests, 11U);
  EXPECT_LE(cable.view(1).bring_up_requests, 5U);

  const PortInfo &low = cable.sides[0].sma.port, &high = cable.sides[1].sma.port;
  EXPECT_EQ(low.gid_prefix(), cable_prefix(kLowPort, kHighPort));
  EXPECT_EQ(high.gid_prefix(), low.gid_prefix());
  EXPECT_EQ(std::pair(low.lid(), high.lid()), provisional_lids(kLowPort, kHighPort, 1));
  EXPECT_EQ(low.lmc(), 1);
  EXPECT_EQ(low.neighbor_mtu(), 5);
  EXPECT_EQ(low.operational_vls(), 4);
  EXPECT_EQ(low.sm_lid(), low.lid());
  EXPECT_EQ(high.sm_lid(), low.lid());

  cable.run(1s);
  EXPECT_EQ(cable.sides[0].sma.sets + cable.sides[1].sma.sets, 6U) << "settled means nothing is set again";
  EXPECT_EQ(cable.view(0).peer.description, "n");
}

// Whoever starts when, by microseconds: never a moment in which both stand by for each other.
TEST(SubnetManager, SimultaneousStartsElectAtOnce) {
  for (int offset = 0; offset < 200; ++offset) {
    SCOPED_TRACE(offset);
    Cable cable = make_cable(base_seed() + static_cast<std::uint64_t>(offset));
    cable.plug(false);
    const int first = offset % 2;
    cable.start(first);
    cable.run(Duration(offset * 5us));
    cable.start(1 - first);
    const auto took = cable.run_until([&] { return cable.ports_active(); }, 1s);
    ASSERT_TRUE(took);
    EXPECT_LT(*took, 5ms);
  }
}

TEST(SubnetManager, NegotiatesTheSmallerMtu) {
  Cable cable = make_cable();
  cable.sides[1].sma.set_mtu_cap(4);
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.sides[0].sma.port.neighbor_mtu(), 4);
  EXPECT_EQ(cable.sides[1].sma.port.neighbor_mtu(), 4);
}

TEST(SubnetManager, ManagesACableAlone) {
  Cable cable = make_cable();
  cable.plug(false);
  cable.start(1);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.view(1).bring_up_requests, 10U) << "nobody to ask for SMInfo";
}

TEST(SubnetManager, PriorityBeatsGuid) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0, {.priority = 3});
  cable.start(1, {.priority = 4});
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.master(), 1);
}

TEST(SubnetManager, ComesBackWithinMillisecondsAfterAFlap) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  cable.start(1);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  const Lid lid = cable.sides[0].sma.port.lid();
  for (const bool events : {true, false}) {
    cable.unplug(events);
    cable.run(500ms);
    EXPECT_FALSE(cable.view(0).active());
    EXPECT_EQ(cable.view(0).stage, Stage::down);
    cable.plug(events);
    const auto took = cable.run_until([&] { return cable.converged(); }, 1s);
    ASSERT_TRUE(took);
    EXPECT_LT(*took, events ? 10ms : 80ms);
    EXPECT_EQ(cable.sides[0].sma.port.lid(), lid);
  }
}

TEST(SubnetManager, FindsAFlapThatIsFasterThanItsPolls) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  cable.start(1);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.unplug(false);
  cable.run(1ms);
  cable.plug(false);
  const auto took = cable.run_until([&] { return cable.converged(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LT(*took, 120ms);
}

TEST(SubnetManager, StandbyTakesOverAndDisturbsNothing) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  cable.start(1);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.run(300ms);
  const Lid low = cable.sides[0].sma.port.lid(), high = cable.sides[1].sma.port.lid();
  cable.check = [&] { EXPECT_TRUE(cable.ports_active()); };
  cable.kill(0);
  const auto took = cable.run_until([&] { return cable.converged() && cable.master() == 1; }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LT(*took, 60ms);
  EXPECT_EQ(cable.sides[0].sma.port.lid(), low);
  EXPECT_EQ(cable.sides[1].sma.port.lid(), high);
  EXPECT_EQ(cable.sides[0].sma.reregistrations, 1U);
  EXPECT_EQ(cable.sides[1].sma.reregistrations, 1U);

  // It comes back and wins: the other hands over.
  cable.start(0);
  const auto back = cable.run_until([&] { return cable.converged() && cable.master() == 0; }, 2s);
  ASSERT_TRUE(back);
  EXPECT_EQ(cable.view(1).state, SmState::standby);
  EXPECT_EQ(cable.view(0).counters.handovers, 1U);
  EXPECT_EQ(cable.view(1).counters.handovers, 1U);
  EXPECT_EQ(cable.sides[0].sma.port.lid(), low);
}

TEST(SubnetManager, ARestartedMasterKeepsWhatItFinds) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  const unsigned sets = cable.sides[0].sma.sets;
  cable.kill(0);
  cable.check = [&] { EXPECT_TRUE(cable.ports_active()); };
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.sides[0].sma.sets, sets + 1) << "one Set, with ClientReregister";
}

// Ten minutes with answers that come up to 300 ms late, and with lost datagrams.
TEST(SubnetManager, NoFalseTakeoverUnderLoad) {
  Cable cable = make_cable(base_seed());
  cable.conditions.loss = 0.01;
  cable.plug();
  cable.start(0);
  cable.start(1);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 2s));
  cable.manager_delay = [&](int) {
    return Duration(std::uniform_int_distribution<std::int64_t>(0, 300'000'000)(cable.random));
  };
  const TimePoint since = cable.view(0).state_since;
  cable.check = [&] { ASSERT_EQ(cable.view(1).state, SmState::standby); };
  cable.run(10min);
  EXPECT_EQ(cable.view(0).state_since, since);
}

TEST(SubnetManager, AMasterThatHangsIsReplaced) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  cable.start(1);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.kill(0);
  cable.sides[0].sma.set_capability(PortInfo::kCapabilityIsSm, true);  // the process hangs, the bit stays
  const auto took = cable.run_until([&] { return cable.view(1).state == SmState::master; }, 20s);
  ASSERT_TRUE(took);
  EXPECT_GT(*took, 5s);
  EXPECT_LT(*took, 8s);
}

TEST(SubnetManager, TakesAgreedLids) {
  Cable cable = make_cable();
  Settings settings;
  settings.base_lids = {{kLowNode, Lid{2}}, {kHighNode, Lid{4}}};
  cable.plug();
  cable.start(0, settings);
  cable.start(1, settings);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.sides[0].sma.port.lid(), Lid{2});
  EXPECT_EQ(cable.sides[1].sma.port.lid(), Lid{4});
}

TEST(SubnetManager, ChangesToAgreedLidsWhenTheyCome) {
  constexpr Guid low_host{0xA}, high_host{0xB};  // not known from the adapters
  Cable cable = make_cable();
  cable.plug();
  cable.start(0, {.host = low_host});
  cable.start(1, {.host = high_host});
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  const Lid provisional = cable.sides[1].sma.port.lid();
  cable.check = [&] { EXPECT_TRUE(cable.ports_active()); };

  Settings settings{.host = low_host, .port_guid = kLowPort, .port = 1};
  settings.base_lids = {{low_host, Lid{2}}, {high_host, Lid{4}}};
  cable.give(0, SettingsChanged{settings});
  const auto own = cable.run_until([&] { return cable.sides[0].sma.port.lid() == Lid{2}; }, 1s);
  ASSERT_TRUE(own);
  EXPECT_LT(*own, 5ms);
  EXPECT_EQ(cable.sides[1].sma.port.lid(), provisional) << "the other end's host is not known yet";
  cable.run(10ms);
  cable.give(0, NeighbourKnown{high_host});
  const auto other = cable.run_until([&] { return cable.sides[1].sma.port.lid() == Lid{4}; }, 1s);
  ASSERT_TRUE(other);
  EXPECT_LT(*other, 5ms);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.sides[0].sma.port.sm_lid(), Lid{2});
}

TEST(SubnetManager, LeftoverLidsThatClashAreReplaced) {
  Cable cable = make_cable();
  cable.sides[0].sma.port.set_lid(Lid{2});
  cable.sides[1].sma.port.set_lid(Lid{2});
  cable.sides[0].sma.port.set_lmc(1);
  cable.sides[1].sma.port.set_lmc(1);
  cable.plug();
  cable.start(0, {.base_lids = {{kLowNode, Lid{2}}}});
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.sides[0].sma.port.lid(), Lid{2});
  EXPECT_EQ(cable.sides[1].sma.port.lid(), provisional_lids(kLowPort, kHighPort, 1).second);
}

TEST(SubnetManager, CableToOneselfGetsTwoLids) {
  Cable cable(Sma(kLowNode, kLowPort, 1), Sma(kLowNode, kHighPort, 2), 1);
  Settings settings;
  settings.base_lids = {{kLowNode, Lid{2}}};
  cable.plug();
  cable.start(0, settings);
  cable.start(1, settings);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_TRUE(cable.view(0).to_oneself());
  EXPECT_NE(cable.sides[0].sma.port.lid(), cable.sides[1].sma.port.lid());
}

TEST(SubnetManager, RefusesDuplicatePortGuids) {
  Cable cable(Sma(kLowNode, kLowPort, 1), Sma(kHighNode, kLowPort, 1), 1);
  cable.plug();
  cable.start(0);
  cable.start(1);
  cable.run(3s);
  EXPECT_EQ(cable.view(0).stage, Stage::refused);
  EXPECT_EQ(cable.view(1).stage, Stage::refused);
  EXPECT_EQ(cable.sides[0].sma.sets, 0U);
  EXPECT_NE(cable.view(0).reason.find("0x0000000000000011"), std::string::npos);
}

TEST(SubnetManager, SaysWhyWhenTheOtherEndIsSilent) {
  Cable cable = make_cable();
  cable.plug();
  cable.conditions.loss = 1;
  cable.start(0);
  cable.run(2s);
  EXPECT_EQ(cable.view(0).reason, "the other end does not answer subnet management");
  cable.conditions.loss = 0;
  const auto took = cable.run_until([&] { return cable.converged(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LT(*took, 300ms);
}

TEST(SubnetManager, AddsAMissingDefaultPkey) {
  Cable cable = make_cable();
  cable.sides[1].sma.pkeys.set_pkey(0, 0x8001);
  cable.plug();
  cable.start(0);
  cable.run(100ms);
  EXPECT_EQ(cable.sides[1].sma.pkeys.pkey(0), 0x8001);
  EXPECT_EQ(cable.sides[1].sma.pkeys.pkey(1), 0xFFFF);
}

TEST(SubnetManager, RemovesAForeignMkey) {
  Cable cable = make_cable();
  cable.sides[1].sma.port.set_m_key(0xDEAD);
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.sides[1].sma.port.m_key(), 0U);
}

TEST(SubnetManager, ProtectsPortsByMkey) {
  Cable cable = make_cable();
  for (auto& side : cable.sides) side.sma.hides_m_key = true;
  Settings settings;
  settings.m_key = 0xBEEF;
  cable.plug();
  cable.start(0, settings);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  for (const auto& side : cable.sides) EXPECT_EQ(side.sma.port.m_key(), 0xBEEFU);
  // Somebody without the key changes nothing, and is told why.
  cable.kill(0);
  cable.start(1);
  cable.run(3s);
  EXPECT_EQ(cable.sides[0].sma.port.m_key(), 0xBEEFU);
  cable.unplug();
  cable.plug();
  cable.run(3s);
  EXPECT_FALSE(cable.ports_active());
  EXPECT_NE(cable.view(1).reason.find("M_Key"), std::string::npos) << cable.view(1).reason;
  // Who knows it takes over.
  cable.kill(1);
  cable.start(1, settings);
  EXPECT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  // So does another key, when the lease has ended: protection does, and the old key can be read.
  cable.kill(1);
  settings.m_key = 0xCAFE;
  cable.start(1, settings);
  cable.run(3s);
  EXPECT_NE(cable.view(1).reason.find("M_Key"), std::string::npos) << cable.view(1).reason;
  EXPECT_TRUE(cable.ports_active()) << "what works is left alone";
  for (auto& side : cable.sides) side.sma.hides_m_key = false;
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  for (const auto& side : cable.sides) EXPECT_EQ(side.sma.port.m_key(), 0xCAFEU);
}

// Whatever somebody else does to a port, as long as the port lets them.
TEST(SubnetManager, PutsBackWhatAPortWasGiven) {
  Cable cable = make_cable();
  Settings settings;
  settings.m_key = 0xBEEF;
  cable.plug();
  cable.start(0, settings);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.run(1s);
  const std::vector<std::pair<const char*, std::function<void(PortInfo&)>>> changes{
      {"M_Key", [](PortInfo& port) { port.set_m_key(0); }},
      {"protection", [](PortInfo& port) { port.set_m_key_protection(0); }},
      {"lease", [](PortInfo& port) { port.set_m_key_lease(0s); }},
      {"prefix", [](PortInfo& port) { port.set_gid_prefix(0xFE80ULL << 48); }},
      {"LID", [](PortInfo& port) { port.set_lid(Lid{77}); }},
      {"LID of the manager", [](PortInfo& port) { port.set_sm_lid(Lid{77}); }},
      {"SL of the manager", [](PortInfo& port) { port.set_sm_sl(3); }},
      {"LMC", [](PortInfo& port) { port.set_lmc(7); }},
      {"MTU", [](PortInfo& port) { port.set_neighbor_mtu(1); }},
      {"lanes", [](PortInfo& port) { port.set_operational_vls(1); }},
      {"timeout", [](PortInfo& port) { port.set_subnet_timeout(3); }},
      {"what a lost link becomes", [](PortInfo& port) { port.set_link_down_default(1); }},
      {"thresholds", [](PortInfo& port) { port.set_error_thresholds(1, 1); }},
  };
  for (auto& side : cable.sides)
    for (const auto& [what, change] : changes) {
      SCOPED_TRACE(what);
      const PortInfo before = side.sma.port;
      change(side.sma.port);
      ASSERT_NE(side.sma.port, before);
      EXPECT_TRUE(cable.run_until([&] { return side.sma.port == before; }, 2s));
      EXPECT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
    }
  const unsigned sets = cable.sides[0].sma.sets;
  cable.run(10s);
  EXPECT_EQ(cable.sides[0].sma.sets, sets);
}

TEST(SubnetManager, DoesNotQuarrelWithAPortThatForgets) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.check = [&] { cable.sides[1].sma.port.set_subnet_timeout(3); };
  const unsigned sets = cable.sides[1].sma.sets;
  cable.run(10s);
  EXPECT_GT(cable.sides[1].sma.sets, sets);
  EXPECT_LE(cable.sides[1].sma.sets, sets + 11) << "one a second";
  EXPECT_TRUE(cable.ports_active());
}

TEST(SubnetManager, GivesServiceLevelsALaneThatExists) {
  Cable cable = make_cable();
  for (std::size_t sl = 0; sl < 16; ++sl) cable.sides[1].sma.sl_to_vl.set_vl(sl, 15);
  cable.sides[1].sma.sl_to_vl.set_vl(3, 2);
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.run(100ms);
  const auto& repaired = cable.sides[1].sma.sl_to_vl;
  EXPECT_EQ(repaired.vl(0), 0);
  EXPECT_EQ(repaired.vl(9), 1) << "there are eight";
  EXPECT_EQ(repaired.vl(3), 2) << "as it was";
  EXPECT_EQ(*cable.view(0).peer.sl_to_vl, repaired);
}

TEST(SubnetManager, NamesASlowLink) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  EXPECT_EQ(cable.view(0).slow_link(), "");
  cable.unplug();
  for (auto& side : cable.sides) {
    auto bytes = side.sma.port.bytes();
    bytes[31] = 1;  // LinkWidthActive: 1x
    side.sma.port = PortInfo(std::span<const std::uint8_t, 64>(bytes));
  }
  cable.run(1s);
  cable.plug();
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  const std::string slow = cable.view(0).slow_link();
  EXPECT_NE(slow.find("at 1x 25 Gbit/s, and both ends can 4x 25 Gbit/s"), std::string::npos) << slow;
  EXPECT_EQ(std::ranges::count(cable.sides[0].notes, slow), 1);
}

TEST(SubnetManager, ReadsADescriptionAgainWhenTheAdapterSaysThatItChanged) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.run(100ms);
  EXPECT_EQ(cable.view(0).peer.description, "n");
  cable.sides[1].sma.description = 'm';
  Mad trap(verbs::MadClass::subnet_lid_routed, MadMethod::trap, 2, 0);
  trap.smp_data()[0] = 0x84;
  verbs::store_big_endian<2>(trap.smp_data(), 4, 144);
  verbs::store_big_endian<2>(trap.smp_data(), 6, cable.sides[1].sma.port.lid().value());
  cable.give(0, MadReceived{trap, {}});
  cable.run(10ms);
  EXPECT_EQ(cable.view(0).peer.description, "m");
}

// An adapter that does not do what it is told must not be told again and again.
TEST(SubnetManager, AcceptsThatAPortHasNoLmc) {
  Cable cable = make_cable();
  cable.sides[1].sma.supports_lmc = false;
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  const unsigned sets = cable.sides[1].sma.sets;
  cable.run(10s);
  EXPECT_EQ(cable.sides[1].sma.sets, sets);
}

// Loss, duplicates, reordering, random faults; after they stop the cable is up within a bounded time.
TEST(SubnetManager, ConvergesAfterRandomFaults) {
  Duration worst{};
  for (std::uint64_t seed = base_seed(); seed < base_seed() + 300; ++seed) {
    SCOPED_TRACE("FABRIC_SEED=" + std::to_string(seed));
    Cable cable = make_cable(seed);
    auto& random = cable.random;
    cable.conditions = {.loss = 0.2, .duplication = 0.1, .shortest = 10us, .longest = 30ms};
    for (int i = 0; i < 20; ++i) {
      const int side = static_cast<int>(random() % 2);
      switch (random() % 6) {
        case 0:
          cable.plug(random() % 2 == 0);
          break;
        case 1:
          cable.unplug(random() % 2 == 0);
          break;
        case 2:
          cable.kill(side);
          break;
        case 3:
        case 4:
          if (!cable.sides[side].manager)
            cable.start(side, {.priority = static_cast<std::uint8_t>(random() % 3)});
          break;
        default:
          if (cable.sides[side].manager) cable.give(side, NeighbourKnown{Guid{random() % 3}});
      }
      cable.run(Duration(random() % 100'000'000));
    }
    for (int side : {0, 1})
      if (!cable.sides[side].manager) cable.start(side);
    cable.conditions = {};
    if (!cable.plugged) cable.plug();
    const auto took = cable.run_until([&] { return cable.converged(); }, 3s);
    ASSERT_TRUE(took) << to_string(cable.view(0).stage) << ' ' << to_string(cable.view(0).state) << ' '
                      << to_string(cable.view(1).stage) << ' ' << to_string(cable.view(1).state);
    worst = std::max(worst, *took);
    EXPECT_EQ(cable.sides[0].sma.port.gid_prefix(), cable.sides[1].sma.port.gid_prefix());
    EXPECT_NE(cable.sides[0].sma.port.lid(), cable.sides[1].sma.port.lid());
  }
  RecordProperty("worst_ms", static_cast<int>(worst / 1ms));
}

// --- control packets from another manager

std::vector<Mad> sends(const std::vector<Action>& actions) {
  std::vector<Mad> found;
  for (const auto& action : actions)
    if (const auto* send = std::get_if<SendMad>(&action)) found.push_back(send->mad);
  return found;
}

MadReceived control(verbs::SmControl what) {
  Mad mad = verbs::directed_route_request(MadMethod::set, SmAttribute::sm_info,
                                          static_cast<std::uint32_t>(what), 2);
  mad.set_tid(99);
  SmInfo info;
  info.set_guid(kHighPort);
  info.set_priority_and_state(15, SmState::master);
  info.store(mad);
  return {mad, {.lid = verbs::kPermissiveLid, .qpn = Qpn{0}}};
}

TEST(SubnetManager, ObeysControlPacketsInTheRightStatesOnly) {
  using verbs::SmControl;
  Cable cable = make_cable();
  cable.plug();
  cable.start(0, {.priority = 1});
  cable.start(1, {.priority = 2});
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  ASSERT_EQ(cable.view(0).state, SmState::standby);
  SubnetManager& manager = *cable.sides[0].manager;
  const auto status = [&](SmControl what) {
    const auto answers = sends(manager.handle(cable.now, control(what)));
    EXPECT_FALSE(answers.empty());
    EXPECT_EQ(answers[0].tid(), 99U);
    EXPECT_EQ(answers[0].method(), MadMethod::get_response);
    EXPECT_EQ(SmInfo(answers[0].smp_data()).state(), cable.view(0).state);
    return answers[0].status();
  };
  EXPECT_EQ(status(SmControl::acknowledge), 0x1C);
  EXPECT_EQ(status(SmControl::standby), 0x1C);
  EXPECT_EQ(status(SmControl::disable), 0);
  EXPECT_EQ(cable.view(0).state, SmState::not_active);
  EXPECT_EQ(status(SmControl::handover), 0x1C);
  EXPECT_EQ(status(SmControl::discover), 0x1C);
  EXPECT_EQ(status(SmControl::standby), 0);
  EXPECT_EQ(cable.view(0).state, SmState::standby);
  EXPECT_EQ(status(SmControl::discover), 0);
  EXPECT_EQ(cable.view(0).state, SmState::discovering);
  EXPECT_EQ(status(static_cast<SmControl>(77)), 0x1C);
  const auto answers = sends(manager.handle(cable.now, control(SmControl::handover)));
  EXPECT_EQ(cable.view(0).state, SmState::master);
  ASSERT_GE(answers.size(), 2U);
  EXPECT_EQ(answers[0].status(), 0);
  EXPECT_TRUE(std::any_of(answers.begin(), answers.end(), [](const Mad& mad) {
    return mad.method() == MadMethod::set && mad.attribute() == 0x20 &&
           mad.modifier() == static_cast<std::uint32_t>(SmControl::acknowledge);
  }));
}

TEST(SubnetManager, ADisabledManagerStillLearnsWhoIsThere) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0, {.priority = 1});
  cable.start(1, {.priority = 2});
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  cable.give(0, control(verbs::SmControl::disable));
  cable.unplug();
  cable.run(100ms);
  cable.plug();
  const auto took = cable.run_until([&] { return cable.view(0).active() && cable.view(1).active(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LT(*took, 40ms);
  EXPECT_EQ(cable.view(0).state, SmState::not_active);
}

TEST(SubnetManager, AnswersTrapsAsMaster) {
  Cable cable = make_cable();
  cable.plug();
  cable.start(0);
  ASSERT_TRUE(cable.run_until([&] { return cable.converged(); }, 1s));
  Mad trap(verbs::MadClass::subnet_lid_routed, MadMethod::trap, 2, 0);
  trap.set_tid(5);
  const auto answers =
      sends(cable.sides[0].manager->handle(cable.now, MadReceived{trap, {.lid = Lid{4}, .qpn = Qpn{0}}}));
  ASSERT_FALSE(answers.empty());
  EXPECT_EQ(answers[0].method(), MadMethod::trap_repress);
  EXPECT_EQ(answers[0].tid(), 5U);
}

// Anything may arrive: nothing crashes, and the cable is managed afterwards.
TEST(SubnetManager, SurvivesNonsense) {
  for (std::uint64_t seed = base_seed(); seed < base_seed() + 30; ++seed) {
    SCOPED_TRACE("FABRIC_SEED=" + std::to_string(seed));
    Cable cable = make_cable(seed);
    cable.plug();
    cable.start(0);
    for (int i = 0; i < 2000; ++i) {
      auto bytes = Mad::Bytes{};
      for (auto& byte : bytes) byte = static_cast<std::uint8_t>(cable.random());
      bytes[0] = 1;
      const std::uint8_t classes[] = {0x01, 0x81}, methods[] = {1, 2, 5, 7, 0x81};
      const std::uint8_t attributes[] = {0x02, 0x10, 0x11, 0x15, 0x16, 0x20};
      bytes[1] = classes[cable.random() % 2];
      bytes[3] = methods[cable.random() % 5];
      bytes[16] = 0;
      bytes[17] = attributes[cable.random() % 6];
      if (cable.random() % 2 == 0) {  // often a TID that is waited for
        bytes[12] = bytes[13] = bytes[14] = bytes[15] = 0;
        auto& waiting = cable.sides[0].waiting;
        if (!waiting.empty()) verbs::store_big_endian<4>(bytes, 12, *waiting.begin());
      }
      if (cable.random() % 2 == 0) verbs::store_big_endian<4>(bytes, 20, cable.random() % 7);
      cable.give(0, MadReceived{*Mad::decode(bytes), {.lid = Lid{1}, .qpn = Qpn{0}}});
      if (i % 10 == 0) cable.run(1ms);
    }
    cable.unplug();
    cable.run(10ms);
    cable.plug();
    cable.run(2s);
    if (cable.view(0).state == SmState::not_active) continue;  // it was told to
    EXPECT_TRUE(cable.converged());
  }
}

TEST(Plan, PrefixIsTheSameFromBothEndsAndDiffersBetweenCables) {
  std::set<std::uint64_t> prefixes;
  std::set<Lid> lids;
  for (std::uint64_t i = 1; i <= 1000; ++i) {
    const Guid one{0x0002C90300000000 + 16 * i}, other{0x0002C90300000000 + 16 * (i + 1)};
    EXPECT_EQ(cable_prefix(one, other), cable_prefix(other, one));
    EXPECT_EQ(cable_prefix(one, other) >> 56, 0xFDU);
    prefixes.insert(cable_prefix(one, other));
    for (const std::uint8_t lmc : {0, 1, 3, 7}) {
      const auto [a, b] = provisional_lids(one, other, lmc);
      EXPECT_EQ(provisional_lids(other, one, lmc), std::pair(b, a));
      EXPECT_EQ(a.value() % (1U << lmc), 0U);
      EXPECT_EQ(a.value() + (1U << lmc), b.value());
      EXPECT_GE(a, Lid{0xB000});
      EXPECT_LE(b.value() + (1U << lmc) - 1, 0xBFFFU);
    }
  }
  EXPECT_EQ(prefixes.size(), 1000U);
}

}  // namespace
}  // namespace fabric::daemon::subnet
