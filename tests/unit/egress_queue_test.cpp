// The egress queue against a naive oracle (two deques) on random operations, and its numbers across the wrap.
#include "fabricd/forwarder/egress_queue.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <deque>
#include <random>

namespace fabric::daemon {
namespace {

TEST(EgressQueue, KeepsWhatHasNoCompletionInOrder) {
  EgressQueue queue(8);
  for (Slot slot = 0; slot < 6; ++slot) queue.push({slot, 100 + slot});
  EXPECT_EQ(queue.bytes(), 615u);
  const std::uint32_t second = queue.number(1);
  queue.mark_posted(4);
  std::vector<Slot> done, lost;
  unsigned lost_posted = 0;
  queue.complete(second, [&](Outgoing outgoing) { done.push_back(outgoing.slot); });
  EXPECT_EQ(done, (std::vector<Slot>{0, 1})) << "a completion stands for all before it";
  queue.complete(second, [&](Outgoing) { FAIL() << "completed twice"; });
  queue.complete(queue.number(0), [&](Outgoing) { FAIL() << "not with the adapter yet"; });
  queue.drain([&](Outgoing outgoing, bool was_posted) {
    lost.push_back(outgoing.slot);
    lost_posted += was_posted ? 1 : 0;
  });
  EXPECT_EQ(lost, (std::vector<Slot>{2, 3, 4, 5}));
  EXPECT_EQ(lost_posted, 2u);
  EXPECT_EQ(queue.size(), 0u);
  EXPECT_EQ(queue.bytes(), 0u);
}

TEST(EgressQueue, AgreesWithAnOracleOnRandomOperations) {
  const char* wish = std::getenv("TEST_SEED");
  const auto seed = wish != nullptr ? static_cast<unsigned>(std::atoi(wish)) : std::random_device{}();
  SCOPED_TRACE(testing::Message() << "TEST_SEED=" << seed);
  std::mt19937 random(seed);
  constexpr std::size_t kSlots = 37;  // not a power of two
  EgressQueue queue(kSlots);
  std::deque<std::pair<std::uint32_t, Slot>> posted;
  std::deque<Slot> waiting;
  Slot next = 0;
  std::uint64_t bytes = 0;
  const auto length_of = [](Slot slot) { return slot % 1500 + 1; };
  for (int step = 0; step < 200'000; ++step) {
    switch (random() % 8) {
      default:
        if (posted.size() + waiting.size() == kSlots) break;
        waiting.push_back(next);
        queue.push({next, length_of(next)});
        bytes += length_of(next++);
        break;
      case 4:
      case 5: {
        const std::size_t n = waiting.empty() ? 0 : random() % (waiting.size() + 1);
        for (std::size_t i = 0; i < n; ++i) {
          ASSERT_EQ(queue.peek(static_cast<std::uint32_t>(i)).slot, waiting[i]);
          posted.emplace_back(queue.number(static_cast<std::uint32_t>(i)), waiting[i]);
        }
        waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(n));
        queue.mark_posted(static_cast<std::uint32_t>(n));
        break;
      }
      case 6: {
        if (posted.empty()) break;
        const std::size_t last = random() % posted.size();
        std::size_t at = 0;
        queue.complete(posted[last].first, [&](Outgoing outgoing) {
          ASSERT_LE(at, last);
          ASSERT_EQ(outgoing.slot, posted[at++].second);
          bytes -= outgoing.length;
        });
        ASSERT_EQ(at, last + 1);
        posted.erase(posted.begin(), posted.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      }
      case 7: {
        if (random() % 50 != 0) break;
        std::size_t at = 0;
        queue.drain([&](Outgoing outgoing, bool was_posted) {
          ASSERT_EQ(was_posted, at < posted.size());
          ASSERT_EQ(outgoing.slot, was_posted ? posted[at].second : waiting[at - posted.size()]);
          ++at;
        });
        ASSERT_EQ(at, posted.size() + waiting.size());
        posted.clear();
        waiting.clear();
        bytes = 0;
        break;
      }
    }
    ASSERT_EQ(queue.posted(), posted.size());
    ASSERT_EQ(queue.waiting(), waiting.size());
    ASSERT_EQ(queue.bytes(), bytes);
  }
}

}  // namespace
}  // namespace fabric::daemon
