#include "routing/link_state.hpp"

#include <gtest/gtest.h>

namespace fabric::routing {
namespace {

using News = LinkState::News;
using std::chrono::seconds;

Advertisement advertisement(std::uint64_t sequence, std::uint32_t incarnation = 1) {
  Advertisement result;
  result.origin = Guid(5);
  result.sequence = sequence;
  result.incarnation = incarnation;
  return result;
}

TEST(LinkState, TheHigherSequenceCounts) {
  LinkState state;
  EXPECT_EQ(state.compare({Guid(5), 1, 1}), News::newer);
  EXPECT_EQ(state.store(advertisement(10), {}, {}), nullptr);
  EXPECT_EQ(state.compare({Guid(5), 11, 1}), News::newer);
  EXPECT_EQ(state.compare({Guid(5), 10, 1}), News::same);
  EXPECT_EQ(state.compare({Guid(5), 9, 2}), News::older);
  EXPECT_EQ(state.compare({Guid(5), 10, 2}), News::newer) << "a tie is for the later start";
  EXPECT_EQ(state.compare({Guid(6), 1, 1}), News::newer);
  const auto replaced = state.store(advertisement(12), {}, {});
  ASSERT_NE(replaced, nullptr);
  EXPECT_EQ(replaced->advertisement.sequence, 10u);
  EXPECT_EQ(state.find(Guid(5))->advertisement.sequence, 12u);
}

TEST(LinkState, AgesTravelAndTheOldIsForgotten) {
  LinkState state;
  const TimePoint now{seconds(1000)};
  state.store(advertisement(1), {}, now - seconds(30));
  EXPECT_EQ(LinkState::flooded(*state.find(Guid(5)), now + seconds(5)).age, 35u);
  EXPECT_EQ(state.forget(now - seconds(31), Guid{}), 0u);
  EXPECT_EQ(state.forget(now, Guid(5)), 0u) << "never this host's own";
  EXPECT_EQ(state.forget(now, Guid{}), 1u);
  EXPECT_EQ(state.find(Guid(5)), nullptr);
}

}  // namespace
}  // namespace fabric::routing
