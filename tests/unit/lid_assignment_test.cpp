#include "routing/lid_assignment.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace fabric::routing {
namespace {

HostIndex index(unsigned value) {
  return HostIndex(static_cast<std::uint16_t>(value));
}

TEST(LidAssignment, ElectsThePriorityThenTheLowerGuid) {
  std::vector<Candidate> candidates{{Guid(5), 1}, {Guid(3), 1}, {Guid(9), 2}};
  EXPECT_EQ(elect(candidates), Guid(9));
  candidates.pop_back();
  EXPECT_EQ(elect(candidates), Guid(3));
  EXPECT_EQ(elect({}), Guid(0));
}

TEST(LidAssignment, NumbersAtTheEndOfNames) {
  EXPECT_EQ(index_from_name("h1"), index(1));
  EXPECT_EQ(index_from_name("node-07"), index(7));
  EXPECT_EQ(index_from_name("rack3node12"), index(12));
  EXPECT_EQ(index_from_name("42"), index(42));
  for (const char* name : {"", "alpha", "h0", "h99999", "h18446744073709551617", "7up"})
    EXPECT_EQ(index_from_name(name), kNoHost) << name;
}

TEST(LidAssignment, GivesWhatIsClaimedAndTheLowestFreeOtherwise) {
  const std::vector<Candidate> hosts{{Guid(1)},
                                     {Guid(2), 0, Claim::name, index(7)},
                                     {Guid(3), 0, Claim::name, index(7)},
                                     {Guid(4), 0, Claim::configured, index(1)},
                                     {Guid(5), 0, Claim::held, index(3)},
                                     {Guid(6), 0, Claim::configured, index(3)}};
  const LidTable table = assign({}, hosts);
  EXPECT_EQ(table.version, 1u);
  EXPECT_TRUE(valid(table));
  EXPECT_EQ(index_in(table, Guid(1)), index(5));
  EXPECT_EQ(index_in(table, Guid(2)), index(7));
  EXPECT_EQ(index_in(table, Guid(3)), index(4));
  EXPECT_EQ(index_in(table, Guid(4)), index(1));
  EXPECT_EQ(index_in(table, Guid(5)), index(3)) << "who had it before goes first";
  EXPECT_EQ(index_in(table, Guid(6)), index(2)) << "a stronger claim, though unlucky, chooses first";
  EXPECT_EQ(assign(table, hosts).version, 1u) << "nothing to do";
}

TEST(LidAssignment, NobodyMovesWhoIsInTheTable) {
  LidTable table{4, {{Guid(8), index(1)}, {Guid(9), index(2)}}};
  const std::vector<Candidate> hosts{{Guid(1), 0, Claim::held, index(1)},
                                     {Guid(8), 0, Claim::held, index(5)}};  // Guid 9 is not there
  const LidTable after = assign(table, hosts);
  EXPECT_EQ(after.version, 5u);
  EXPECT_EQ(index_in(after, Guid(8)), index(1));
  EXPECT_EQ(index_in(after, Guid(9)), index(2));
  EXPECT_EQ(index_in(after, Guid(1)), index(3));
}

TEST(LidAssignment, WhenAllIndexesAreInUseTheAbsentGiveWay) {
  LidTable table{1, {}};
  for (unsigned i = 1; i <= kMaxHostIndex.value(); ++i) table.entries.push_back({Guid(i), index(i)});
  std::vector<Candidate> hosts{{Guid(1)}, {Guid(2)}, {Guid(100'000)}};
  const LidTable after = assign(table, hosts);
  EXPECT_TRUE(valid(after));
  EXPECT_EQ(index_in(after, Guid(3)), kNoHost);
  EXPECT_EQ(index_in(after, Guid(100'000)), index(3));
}

// Two fabrics that grew apart are joined: as many hosts move as indexes were used twice, and no more.
TEST(LidAssignment, JoiningMovesAsFewAsPossible) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    std::array<LidTable, 2> tables;
    std::vector<Candidate> all;
    for (unsigned side : {0u, 1u}) {
      tables[side].version = 1 + random() % 4;
      std::vector<unsigned> indexes(20);
      for (unsigned i = 0; i < 20; ++i) indexes[i] = i + 1;
      std::shuffle(indexes.begin(), indexes.end(), random);
      for (unsigned i = 0; i < 1 + random() % 10; ++i)
        tables[side].entries.push_back({Guid(1000 * (side + 1) + i), index(indexes[i])});
      for (const auto& entry : tables[side].entries) all.push_back({entry.host, 0, Claim::held, entry.index});
    }
    const bool second = supersedes(tables[1], tables[0]);
    ASSERT_NE(second, supersedes(tables[0], tables[1]));
    const LidTable joined = assign(tables[second ? 1 : 0], all);
    EXPECT_TRUE(valid(joined));
    EXPECT_TRUE((supersedes(joined, tables[0]) && supersedes(joined, tables[1])) ||
                joined.version == tables[second ? 1 : 0].version);
    unsigned conflicts = 0, moved = 0;
    for (const auto& x : tables[0].entries)
      for (const auto& y : tables[1].entries) conflicts += x.index == y.index;
    for (const auto& table : tables)
      for (const auto& entry : table.entries) moved += index_in(joined, entry.host) != entry.index;
    EXPECT_EQ(moved, conflicts);
    EXPECT_EQ(joined.entries.size(), all.size());
  }
}

}  // namespace
}  // namespace fabric::routing
