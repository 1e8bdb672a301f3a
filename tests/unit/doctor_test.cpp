#include "fabricd/control/doctor.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace fabric::daemon {
namespace {

using routing::CableView;
using routing::HostView;
using testing::HasSubstr;
using Level = Finding::Level;

/// h1..hN, all reachable, joined as given; critical hosts and bridges are marked by the test.
struct Fabric {
  std::vector<HostView> hosts;
  std::vector<CableView> cables;

  explicit Fabric(unsigned count) {
    for (unsigned i = 1; i <= count; ++i) {
      HostView& host = hosts.emplace_back();
      host.guid = Guid(i);
      host.name = "h" + std::to_string(i);
      host.self = i == 1;
      host.reachable = host.settled = true;
    }
  }
  CableView& join(unsigned a, unsigned b) {
    CableView& cable = cables.emplace_back();
    cable.ends[0] = {Guid(a), PortIndex(1), 10, true};
    cable.ends[1] = {Guid(b), PortIndex(0), 10, true};
    cable.rate = 100'000'000'000;
    cable.up = true;
    return cable;
  }
};

Evidence healthy() {
  Fabric fabric(3);
  fabric.join(1, 2), fabric.join(2, 3), fabric.join(3, 1);
  Evidence evidence;
  evidence.hosts = fabric.hosts;
  evidence.map = fabric.cables;
  evidence.node.settled = true;
  evidence.cables = {{.port = 1, .name = "x/1", .phase = "connected", .connected = true, .times_up = 1},
                     {.port = 2, .name = "x/2", .phase = "connected", .connected = true, .times_up = 1}};
  evidence.offloads = "csum tso4 tso6";
  return evidence;
}

/// The one finding of this check; fails where there is none or more than one.
Finding only(const Evidence& evidence, const std::string& check) {
  const auto findings = diagnose(evidence);
  const auto is = [&](const Finding& finding) { return finding.check == check; };
  EXPECT_EQ(std::count_if(findings.begin(), findings.end(), is), 1) << check;
  const auto found = std::find_if(findings.begin(), findings.end(), is);
  if (found == findings.end()) return {};
  EXPECT_NE(found->text, "");
  EXPECT_NE(found->evidence, "");
  EXPECT_NE(found->advice, "");
  return *found;
}

TEST(Doctor, NothingIsWrongWithAHealthyRing) {
  EXPECT_TRUE(diagnose(healthy()).empty());
  EXPECT_TRUE(to_json({}).at("well").as_bool());
}

TEST(Doctor, CablesOfThisHost) {
  Evidence evidence = healthy();
  evidence.cables[0] = {.port = 1, .name = "x/1", .phase = "down", .reason = "no link"};
  EXPECT_EQ(only(evidence, "port-unused").level, Level::warning);
  evidence.cables[0].times_up = 3;
  EXPECT_EQ(only(evidence, "cable-down").level, Level::error);
  evidence.cables[0].phase = "greeting";
  EXPECT_THAT(only(evidence, "neighbour-silent").advice, HasSubstr("fabricd"));
  evidence.cables[0].phase = "configuring";
  EXPECT_EQ(only(evidence, "cable-not-ready").level, Level::error);
  evidence = healthy();
  evidence.cables[1].lost_lately = 3;
  EXPECT_THAT(only(evidence, "cable-flaps").evidence, HasSubstr("3 times"));
  evidence.cables[1].damped = true;
  EXPECT_THAT(only(evidence, "cable-damped").text, HasSubstr("port 2"));
  evidence = healthy();
  evidence.cables[1].slow_link = "the link runs at 1x";
  EXPECT_THAT(only(evidence, "cable-slow").text, HasSubstr("port 2"));
}

TEST(Doctor, CablesOfTheFabric) {
  Evidence evidence = healthy();
  evidence.map[1].ends[1].up = evidence.map[1].up = false;
  EXPECT_THAT(only(evidence, "cable-one-way").text, HasSubstr("h2 port 2 - h3 port 1"));
  evidence.map[1].ends[0].up = false;
  EXPECT_EQ(only(evidence, "cable-down").level, Level::error);
  evidence = healthy();
  evidence.map[2].rate = 10'000'000'000;
  EXPECT_THAT(only(evidence, "cable-slow").evidence, HasSubstr("10 Gbit/s, where another cable has 100"));
  evidence = healthy();
  evidence.map[0].ends[0].cost = 20;
  EXPECT_EQ(only(evidence, "cost-asymmetric").level, Level::note);
}

TEST(Doctor, Hosts) {
  Evidence evidence = healthy();
  evidence.hosts[2].reachable = false;
  EXPECT_EQ(only(evidence, "host-unreachable").level, Level::error);
  evidence = healthy();
  evidence.hosts[1].drained = true;
  EXPECT_EQ(only(evidence, "host-drained").level, Level::note);
  EXPECT_TRUE(to_json(diagnose(evidence)).at("well").as_bool());
  evidence.hosts[2].name = "h2";
  EXPECT_THAT(only(evidence, "same-name").text, HasSubstr("2 hosts are called h2"));
  evidence = healthy();
  evidence.node.settled = false;
  only(evidence, "not-settled");
  evidence.node.disagreements = 2;
  only(evidence, "disagreement");
}

TEST(Doctor, NamesWhatOneFailureCutsOff) {
  // h1 = h2 = h3 in a ring, h4 hangs on h3.
  Fabric fabric(4);
  fabric.join(1, 2), fabric.join(2, 3), fabric.join(3, 1);
  fabric.join(3, 4).bridge = true;
  fabric.hosts[2].critical = true;
  const auto points = single_points_of_failure(fabric.hosts, fabric.cables);
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[0], "without h3: h1, h2 | h4");
  EXPECT_EQ(points[1], "without h3 port 2 - h4 port 1: h1, h2, h3 | h4");
  Evidence evidence = healthy();
  evidence.hosts = fabric.hosts;
  evidence.map = fabric.cables;
  const Finding finding = only(evidence, "single-point-of-failure");
  EXPECT_THAT(finding.evidence, HasSubstr(points[0]));
  EXPECT_THAT(finding.evidence, HasSubstr(points[1]));
}

TEST(Doctor, DropsThatGrow) {
  Evidence evidence = healthy();
  evidence.before = {{"drop_egress_full", 100}, {"drop_hop_limit", 5}, {"tun_read_packets", 1}};
  evidence.after = {{"drop_egress_full", 300}, {"drop_hop_limit", 5}, {"tun_read_packets", 9}};
  evidence.interval = 2;
  EXPECT_THAT(only(evidence, "drops").evidence, HasSubstr("100 a second; 300 since the start"));
  evidence.after = {{"drop_duplicate", 1}};
  EXPECT_EQ(only(evidence, "drops").level, Level::note);
}

TEST(Doctor, TheMachine) {
  Evidence evidence = healthy();
  evidence.slept_lately = 2;
  only(evidence, "no-processor-time");
  evidence = healthy();
  evidence.overlaps = {"eth0 has an address in 10.88.0.0/16"};
  EXPECT_EQ(only(evidence, "address-overlap").level, Level::error);
  evidence = healthy();
  evidence.memory_lock = 1 << 20, evidence.memory_registered = 100 << 20;
  EXPECT_THAT(only(evidence, "memory-lock").evidence, HasSubstr("1 MiB, buffers 100 MiB"));
  evidence = healthy();
  evidence.offloads = "csum";
  EXPECT_EQ(only(evidence, "no-offloads").level, Level::note);
}

TEST(Doctor, WhatFabricdSaysComesFirst) {
  Evidence evidence = healthy();
  evidence.cables[0] = {.port = 1, .name = "x/1", .phase = "down"};
  evidence.problems = {"x/2: a cable to oneself"};
  const auto findings = diagnose(evidence);
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_EQ(findings[0].check, "problem");
  const auto json = to_json(findings);
  EXPECT_FALSE(json.at("well").as_bool());
  EXPECT_EQ(json.at("findings").at(0).at("level").as_string(), "error");
}

}  // namespace
}  // namespace fabric::daemon
