#include "routing/adjacency.hpp"

#include <gtest/gtest.h>

namespace fabric::routing {
namespace {

using std::chrono::milliseconds;
using Effect = Adjacency::Effect;
using Due = Adjacency::Due;

struct AdjacencyTest : testing::Test {
  NodeTimers timers;
  Adjacency adjacency{PortIndex(1), timers};
  TimePoint start{milliseconds(5000)};

  TimePoint at(int ms) const { return start + milliseconds(ms); }
  void connect() { adjacency.connect(start, {PortIndex(1), {Guid(7), "h7", 2, 99}, 100, 0}, 10); }
};

TEST_F(AdjacencyTest, BecomesFullWithTheNeighboursDatabase) {
  EXPECT_EQ(adjacency.view().state, AdjacencyState::down);
  EXPECT_FALSE(adjacency.next_timer());
  connect();
  EXPECT_EQ(adjacency.view().state, AdjacencyState::init);
  EXPECT_EQ(adjacency.received(at(1), Hello{Guid(7), 99, PortIndex(2)}), Effect::nothing);
  EXPECT_EQ(adjacency.received(at(2), Advertisements{}), Effect::nothing);
  EXPECT_EQ(adjacency.received(at(3), DatabaseEnd{}), Effect::full);
  EXPECT_EQ(adjacency.view().state, AdjacencyState::full);
  EXPECT_EQ(adjacency.view().since, at(3));
  EXPECT_EQ(adjacency.received(at(4), DatabaseEnd{}), Effect::nonsense);
  adjacency.disconnect(at(5), "port event");
  EXPECT_EQ(adjacency.view().state, AdjacencyState::down);
  EXPECT_EQ(adjacency.view().reason, "port event");
  EXPECT_FALSE(adjacency.next_timer());
}

TEST_F(AdjacencyTest, AnotherNeighbourThanTheHandshakesIsNonsense) {
  connect();
  EXPECT_EQ(adjacency.received(at(1), Hello{Guid(8), 99, PortIndex(2)}), Effect::nonsense);
  EXPECT_EQ(adjacency.received(at(1), Hello{Guid(7), 98, PortIndex(2)}), Effect::nonsense);
  EXPECT_EQ(adjacency.received(at(1), Hello{Guid(7), 99, PortIndex(1)}), Effect::nonsense);
}

TEST_F(AdjacencyTest, KeepsAliveAndFindsADeadNeighbourAfterOneSecond) {
  connect();
  EXPECT_EQ(adjacency.next_timer(), at(200));
  EXPECT_EQ(adjacency.due(at(199)), Due::nothing);
  EXPECT_EQ(adjacency.due(at(200)), Due::keepalive);
  adjacency.sent(at(200));
  EXPECT_EQ(adjacency.due(at(399)), Due::nothing);
  adjacency.received(at(300), Hello{Guid(7), 99, PortIndex(2)});
  adjacency.sent(at(1299));
  EXPECT_EQ(adjacency.due(at(1299)), Due::nothing);
  EXPECT_EQ(adjacency.due(at(1300)), Due::dead);
}

TEST_F(AdjacencyTest, AHostThatSleptListensFirst) {
  connect();
  adjacency.excuse(at(5000));
  EXPECT_EQ(adjacency.due(at(5000)), Due::keepalive);
  adjacency.sent(at(5000));
  EXPECT_EQ(adjacency.due(at(5199)), Due::nothing);
  adjacency.sent(at(5400));
  EXPECT_EQ(adjacency.due(at(5399)), Due::nothing);
  EXPECT_EQ(adjacency.due(at(5400)), Due::dead) << "two keepalives were missed since";
}

TEST_F(AdjacencyTest, PutsLidTablesTogether) {
  connect();
  const LidTablePart one{3, 2, 0, {{Guid(1), HostIndex(1)}}}, two{3, 2, 1, {{Guid(2), HostIndex(2)}}};
  EXPECT_EQ(adjacency.received(at(1), one), Effect::nothing);
  EXPECT_EQ(adjacency.received(at(1), two), Effect::lid_table);
  EXPECT_EQ(adjacency.take_table().entries.size(), 2u);
  EXPECT_EQ(adjacency.received(at(2), two), Effect::nonsense) << "a part without those before";
  const LidTablePart again{3, 2, 1, {{Guid(2), HostIndex(1)}}};
  EXPECT_EQ(adjacency.received(at(3), one), Effect::nothing);
  EXPECT_EQ(adjacency.received(at(3), again), Effect::nonsense) << "an index twice";
  const LidTablePart nothing{3, 2, 0, {}};
  EXPECT_EQ(adjacency.received(at(4), nothing), Effect::nonsense) << "parts that bring nothing";
}

}  // namespace
}  // namespace fabric::routing
