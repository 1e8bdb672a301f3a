#include "routing/node.hpp"

#include <gtest/gtest.h>

#include "routing/messages.hpp"

namespace fabric::routing {
namespace {

using std::chrono::milliseconds;

TimePoint at(int ms) {
  return TimePoint(milliseconds(1000 + ms));
}

NodeSettings settings_of(unsigned host, std::string name = "") {
  NodeSettings settings;
  settings.guid = Guid(host);
  settings.name = name.empty() ? "h" + std::to_string(host) : name;
  settings.incarnation = 1;
  return settings;
}

template <class T>
std::vector<T> all(const std::vector<Action>& actions) {
  std::vector<T> result;
  for (const auto& action : actions)
    if (const auto* one = std::get_if<T>(&action)) result.push_back(*one);
  return result;
}

bool noticed(const std::vector<Action>& actions, const std::string& kind) {
  for (const auto& notice : all<Notice>(actions))
    if (notice.kind == kind) return true;
  return false;
}

CableUp cable(unsigned port, unsigned neighbour, unsigned neighbour_port) {
  return {PortIndex(static_cast<std::uint8_t>(port)),
          {Guid(neighbour), "h" + std::to_string(neighbour), static_cast<std::uint8_t>(neighbour_port), 1},
          100'000'000'000,
          0};
}

/// Two nodes on one or two cables; messages arrive at once. Port p of one is joined to port p of the other.
struct Pair {
  Node a, b;
  TimePoint now = at(0);
  std::vector<Action> seen_a, seen_b;

  explicit Pair(NodeSettings x = settings_of(1), NodeSettings y = settings_of(2),
                std::optional<LidTable> kept = {})
      : a(std::move(x), std::move(kept)), b(std::move(y)) {
    exchange(a.handle(now, TimerExpired{}), b.handle(now, TimerExpired{}));
  }
  /// `cost` is a's, of sending over it; 0: from the rate.
  void join(unsigned port, std::uint32_t cost = 0) {
    CableUp from_a = cable(port, static_cast<unsigned>(b.settings().guid.value()), port);
    from_a.cost = cost;
    exchange(a.handle(now, from_a),
             b.handle(now, cable(port, static_cast<unsigned>(a.settings().guid.value()), port)));
  }
  void cut(unsigned port) {
    const PortIndex index(static_cast<std::uint8_t>(port));
    exchange(a.handle(now, CableDown{index, "port event"}), b.handle(now, CableDown{index, "port event"}));
  }
  void exchange(std::vector<Action> from_a, std::vector<Action> from_b) {
    while (!from_a.empty() || !from_b.empty()) {
      std::vector<Action> next_a, next_b;
      const auto pass = [&](std::vector<Action>& from, Node& to, std::vector<Action>& next, auto& seen) {
        for (const auto& send : all<SendMessage>(from))
          for (auto& action : to.handle(now, MessageReceived{send.port, send.message}))
            next.push_back(std::move(action));
        seen.insert(seen.end(), from.begin(), from.end());
      };
      pass(from_a, b, next_b, seen_a);
      pass(from_b, a, next_a, seen_b);
      from_a = std::move(next_a);
      from_b = std::move(next_b);
    }
  }
  void run_until(TimePoint end) {
    while (true) {
      const auto next = std::min(a.next_timer(), b.next_timer());
      if (!next || *next > end) break;
      now = std::max(now, *next);
      std::vector<Action> from_a, from_b;
      if (a.next_timer() <= now) from_a = a.handle(now, TimerExpired{});
      if (b.next_timer() <= now) from_b = b.handle(now, TimerExpired{});
      exchange(std::move(from_a), std::move(from_b));
    }
    now = end;
  }
};

TEST(Node, AHostAloneNumbersItselfAfterASecond) {
  Node node(settings_of(3));
  EXPECT_LE(node.next_timer(), at(0));
  EXPECT_EQ(node.handle(at(0), TimerExpired{}).empty(), true);
  TimePoint now = at(0);
  while (node.forwarding()->self == kNoHost && now < at(5000)) {
    now = *node.next_timer();
    node.handle(now, TimerExpired{});
  }
  EXPECT_EQ(node.forwarding()->self, HostIndex(3));
  EXPECT_EQ(now, at(1000));
}

TEST(Node, AKeptTableCountsAtOnce) {
  LidTable kept{7, {{Guid(3), HostIndex(9)}}};
  Node node(settings_of(3), kept);
  node.handle(at(0), TimerExpired{});
  node.handle(at(1), TimerExpired{});
  EXPECT_EQ(node.forwarding()->self, HostIndex(9));
}

TEST(Node, TwoHostsAgreeWithinTheSettleTime) {
  Pair pair;
  pair.join(0);
  pair.run_until(at(60));
  ASSERT_EQ(all<LidsAgreed>(pair.seen_a).size(), 1u);
  ASSERT_EQ(all<LidsAgreed>(pair.seen_b).size(), 1u);
  EXPECT_EQ(pair.a.lid_table().entries, pair.b.lid_table().entries);
  EXPECT_EQ(pair.a.view().assigner, Guid(1));
  EXPECT_EQ(pair.b.view().assigner, Guid(1));
  const auto& state = *pair.a.forwarding();
  EXPECT_EQ(state.self, HostIndex(1));
  EXPECT_EQ(state.egress.at(lid_of(HostIndex(2), 0).value()), PortIndex(0));
  EXPECT_EQ(state.egress.at(lid_of(HostIndex(2), 1).value()), PortIndex(0));
  EXPECT_EQ(state.egress.at(lid_of(HostIndex(1), 0).value()), kNoPort);
  EXPECT_EQ(state.hosts.at(2).name, "h2");
  EXPECT_EQ(state.hosts.at(2).ways[0].cost, 10u) << "of 100 Gbit/s";
}

TEST(Node, ThePriorityMakesTheAssigner) {
  NodeSettings second = settings_of(2);
  second.priority = 1;
  Pair pair(settings_of(1), second);
  pair.join(0);
  pair.run_until(at(100));
  EXPECT_EQ(pair.a.view().assigner, Guid(2));
}

TEST(Node, TwoCablesAreTwoWaysAndACutChangesThePickOnly) {
  Pair pair;
  pair.join(0);
  pair.join(1);
  pair.run_until(at(100));
  const auto egress = pair.a.forwarding()->egress;
  EXPECT_NE(egress.at(4), egress.at(5));
  EXPECT_EQ(pair.a.forwarding()->hosts.at(2).lanes.at(0), 0);
  EXPECT_EQ(pair.a.forwarding()->hosts.at(2).lanes.at(1), 1) << "equal costs: both are used";
  const auto map = pair.a.view().map;

  const PortIndex first = egress.at(4);
  pair.cut(first.value());
  EXPECT_EQ(pair.a.view().map, map) << "the cable is remembered";
  EXPECT_EQ(pair.a.forwarding()->egress.at(4), kNoPort);
  EXPECT_EQ(pair.a.forwarding()->egress.at(5), egress.at(5));
  for (const auto way : pair.a.forwarding()->hosts.at(2).lanes) EXPECT_EQ(way, 1);
  EXPECT_FALSE(pair.a.forwarding()->hosts.at(2).ways[0].whole);

  pair.join(first.value());
  pair.run_until(pair.now + milliseconds(20));
  EXPECT_EQ(pair.a.forwarding()->egress, egress);
}

TEST(Node, MultipathCanBeOff) {
  NodeSettings first = settings_of(1);
  first.multipath = false;
  Pair pair(first);
  pair.join(0);
  pair.join(1);
  pair.run_until(at(100));
  for (const auto way : pair.a.forwarding()->hosts.at(2).lanes) EXPECT_EQ(way, 0);
  EXPECT_EQ(pair.b.forwarding()->hosts.at(1).lanes.at(1), 1);
}

TEST(Node, ConfiguredCostsCount) {
  Pair pair;
  pair.join(0, 50);
  pair.join(1);
  pair.run_until(at(100));
  const auto& route = pair.a.forwarding()->hosts.at(2);
  EXPECT_EQ(route.ways[route.lanes[0]].egress, PortIndex(1));
  EXPECT_EQ(pair.b.forwarding()->hosts.at(1).ways[0].cost, 10u) << "the other direction is the other's";
}

TEST(Node, ACableThatIsGoneForLongLeavesTheMap) {
  Pair pair;
  pair.join(0);
  pair.join(1);
  pair.run_until(at(100));
  pair.cut(0);
  EXPECT_EQ(pair.a.cables().size(), 2u);
  pair.run_until(pair.now + pair.a.settings().timers.remember + milliseconds(100));
  ASSERT_EQ(pair.a.cables().size(), 1u);
  EXPECT_TRUE(pair.a.cables()[0].bridge);
  EXPECT_EQ(pair.a.forwarding()->egress.at(4), PortIndex(1));
  EXPECT_EQ(pair.a.forwarding()->egress.at(5), PortIndex(1));
}

TEST(Node, NonsenseCostsTheCable) {
  Pair pair;
  pair.join(0);
  pair.run_until(at(100));
  auto actions = pair.a.handle(pair.now, MessageReceived{PortIndex(0), std::vector<std::byte>(5)});
  ASSERT_EQ(all<ResetCable>(actions).size(), 1u);
  EXPECT_EQ(all<ResetCable>(actions)[0].port, PortIndex(0));
  EXPECT_EQ(pair.a.adjacencies()[0].malformed, 1u);
  EXPECT_EQ(pair.a.adjacencies()[0].state, AdjacencyState::down);
  EXPECT_FALSE(pair.a.forwarding()->hosts.at(2).reachable);
  EXPECT_TRUE(pair.a.handle(pair.now, MessageReceived{PortIndex(0), std::vector<std::byte>(5)}).empty())
      << "what still arrives is ignored";
}

TEST(Node, ASilentNeighbourIsResetAfterTheDeadInterval) {
  Pair pair;
  pair.join(0);
  pair.run_until(at(500));
  std::vector<Action> actions;
  TimePoint now = pair.now;
  while (all<ResetCable>(actions).empty() && now < at(5000)) {
    now = *pair.a.next_timer();
    actions = pair.a.handle(now, TimerExpired{});
  }
  ASSERT_EQ(all<ResetCable>(actions).size(), 1u);
  EXPECT_GE(now - pair.now, milliseconds(800));
  EXPECT_LE(now - pair.now, milliseconds(1000));
}

TEST(Node, AHostThatSleptDoesNotBlameItsNeighbour) {
  Pair pair;
  pair.join(0);
  pair.run_until(at(500));
  const auto actions = pair.a.handle(pair.now + milliseconds(5000), TimerExpired{});
  EXPECT_TRUE(all<ResetCable>(actions).empty());
  EXPECT_TRUE(noticed(actions, "slept"));
}

TEST(Node, ACableToItselfIsReportedAndHarmless) {
  Node node(settings_of(1));
  node.handle(at(0), TimerExpired{});
  const auto actions = node.handle(at(1), cable(0, 1, 1));
  EXPECT_TRUE(noticed(actions, "self"));
  EXPECT_TRUE(all<SendMessage>(actions).empty());
  node.handle(at(2), CableDown{PortIndex(0), "gone"});
}

TEST(Node, ARestartWithAClockThatWentBackGetsHeard) {
  NodeSettings late = settings_of(2);
  late.incarnation = 50;
  Pair pair(settings_of(1), late);
  pair.join(0);
  pair.run_until(at(100));
  pair.cut(0);
  NodeSettings again = settings_of(2);
  again.incarnation = 3;
  pair.b = Node(again);
  pair.exchange({}, pair.b.handle(pair.now, TimerExpired{}));
  CableUp up = cable(0, 2, 0);
  up.neighbour.incarnation = 3;
  pair.exchange(pair.a.handle(pair.now, up), pair.b.handle(pair.now, cable(0, 1, 0)));
  pair.run_until(pair.now + milliseconds(100));
  EXPECT_TRUE(pair.a.forwarding()->hosts.at(2).reachable);
  EXPECT_EQ(pair.a.hosts()[1].incarnation, 3u);
}

// Two hosts with one GUID on both ends of a third: the one that started last stands back, the other goes on.
TEST(Node, OfTwoHostsWithOneGuidTheLaterStandsBack) {
  Node middle(settings_of(1)), early(settings_of(2)), late([] {
    NodeSettings settings = settings_of(2, "double");
    settings.incarnation = 2;
    return settings;
  }());
  TimePoint now = at(0);
  std::map<PortIndex, Node*> ends{{PortIndex(0), &early}, {PortIndex(1), &late}};
  bool reset = false, reported = false;
  unsigned messages = 0;
  std::function<void(Node*, PortIndex, std::vector<Action>)> run = [&](Node* from, PortIndex port,
                                                                       auto actions) {
    if (from == &late) {
      reset = reset || !all<ResetCable>(actions).empty();
      reported = reported || noticed(actions, "duplicate-guid");
    }
    for (const auto& send : all<SendMessage>(actions)) {
      ASSERT_LT(++messages, 1000u) << "a storm";
      now += std::chrono::microseconds(10);
      if (from == &middle)
        run(ends[send.port], send.port,
            ends[send.port]->handle(now, MessageReceived{PortIndex(0), send.message}));
      else
        run(&middle, port, middle.handle(now, MessageReceived{port, send.message}));
    }
  };
  for (Node* node : {&middle, &early, &late}) node->handle(now, TimerExpired{});
  const auto connect = [&](PortIndex port) {
    Node* node = ends[port];
    CableUp up = cable(port.value(), 2, 0);
    up.neighbour.incarnation = node->settings().incarnation;
    auto from_middle = middle.handle(now, up);
    auto from_end = node->handle(now, cable(0, 1, port.value()));
    run(&middle, port, from_middle);
    run(node, port, from_end);
  };
  connect(PortIndex(0));
  connect(PortIndex(1));
  EXPECT_TRUE(reset);
  EXPECT_TRUE(reported);
  middle.handle(now, CableDown{PortIndex(1), "peer"});
  now += milliseconds(500);
  run(&middle, PortIndex(0), middle.handle(now, TimerExpired{}));
  EXPECT_TRUE(middle.forwarding() != nullptr);
  EXPECT_EQ(middle.hosts()[1].name, "h2");
}

TEST(Node, ACableThatKeepsFailingIsDampedUnlessItIsNeeded) {
  Pair pair;
  pair.join(0);
  pair.join(1);
  pair.run_until(at(100));
  const auto flap = [&](unsigned port) {
    pair.cut(port);
    pair.run_until(pair.now + milliseconds(50));
    pair.join(port);
    pair.run_until(pair.now + milliseconds(100));
  };
  for (unsigned i = 0; i < pair.a.settings().timers.flaps; ++i) {
    EXPECT_FALSE(pair.a.adjacencies()[1].damped);
    flap(1);
  }
  EXPECT_TRUE(pair.a.adjacencies()[1].damped);
  EXPECT_FALSE(pair.a.cables()[1].up);
  pair.run_until(pair.now + milliseconds(1000));
  EXPECT_FALSE(pair.a.adjacencies()[1].damped);
  EXPECT_TRUE(pair.a.cables()[1].up);
  flap(1);
  EXPECT_FALSE(pair.a.adjacencies()[1].damped) << "it had lived long enough";

  for (unsigned i = 0; i < pair.a.settings().timers.flaps; ++i) flap(1);
  EXPECT_TRUE(pair.a.adjacencies()[1].damped);
  pair.cut(0);
  pair.run_until(pair.now + milliseconds(30));
  EXPECT_FALSE(pair.a.adjacencies()[1].damped) << "it is the only one";
  EXPECT_TRUE(pair.a.forwarding()->hosts.at(2).reachable);
}

TEST(Node, ADrainedHostIsAvoidedWhereThereIsAnotherWay) {
  // A ring of h1, h2, h3 as h1 sees it: the others speak through scripted messages.
  Node node(settings_of(1),
            LidTable{1, {{Guid(1), HostIndex(1)}, {Guid(2), HostIndex(2)}, {Guid(3), HostIndex(3)}}});
  node.handle(at(0), TimerExpired{});
  const auto speak = [&](bool drained, std::uint64_t sequence) {
    Advertisement two, three;
    two.origin = Guid(2);
    three.origin = Guid(3);
    two.sequence = three.sequence = sequence;
    two.drained = drained;
    two.links = {{PortIndex(0), Guid(1), PortIndex(0), true, 10, 100'000},
                 {PortIndex(1), Guid(3), PortIndex(0), true, 10, 100'000}};
    three.links = {{PortIndex(0), Guid(2), PortIndex(1), true, 10, 100'000},
                   {PortIndex(1), Guid(1), PortIndex(1), true, 100, 100'000}};
    two.map = three.map = node.view().map;
    node.handle(at(static_cast<int>(20 * sequence)),
                MessageReceived{PortIndex(0),
                                encode_all(std::vector<Flooded>{{0, encode(two)}, {0, encode(three)}})[0]});
  };
  CableUp second = cable(1, 3, 1);
  second.cost = 100;
  node.handle(at(1), cable(0, 2, 0));
  node.handle(at(1), second);
  for (const unsigned port : {0u, 1u})
    node.handle(at(2),
                MessageReceived{PortIndex(static_cast<std::uint8_t>(port)), encode(Message(DatabaseEnd{}))});
  const auto egress = [&] {
    const auto& route = node.forwarding()->hosts.at(3);
    return route.ways[route.lanes.at(0)].egress;
  };
  speak(false, 1);
  EXPECT_TRUE(node.hosts()[0].drained) << "who starts has no entries before it has agreed with the others";
  for (std::uint64_t i = 2; i < 4; ++i) speak(false, i);  // twice, so that the others have agreed
  EXPECT_FALSE(node.hosts()[0].drained);
  EXPECT_EQ(egress(), PortIndex(0)) << "through h2 it costs 20, directly 100";
  for (std::uint64_t i = 4; i < 7; ++i) speak(true, i);
  EXPECT_TRUE(node.hosts()[1].drained);
  EXPECT_EQ(egress(), PortIndex(1));
  EXPECT_TRUE(node.forwarding()->hosts.at(2).reachable) << "itself it can be reached";
}

TEST(Node, PrefixesAreFloodedAndTheLongestComesFirst) {
  Pair pair;
  pair.join(0);
  pair.run_until(at(100));
  Prefix shorter, longer;
  shorter.length = 64;
  longer.length = 96;
  longer.address[0] = 1;
  pair.exchange(pair.a.handle(pair.now, PrefixesChanged{{shorter, longer}}), {});
  pair.run_until(pair.now + milliseconds(10));
  const auto& prefixes = pair.b.forwarding()->prefixes;
  ASSERT_EQ(prefixes.size(), 2u);
  EXPECT_EQ(prefixes[0], std::pair(longer, HostIndex(1)));
  EXPECT_EQ(prefixes[1], std::pair(shorter, HostIndex(1)));
  pair.exchange(pair.a.handle(pair.now, PrefixesChanged{}), {});
  pair.run_until(pair.now + milliseconds(10));
  EXPECT_TRUE(pair.b.forwarding()->prefixes.empty());
}

}  // namespace
}  // namespace fabric::routing
