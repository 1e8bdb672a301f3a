#include "routing/sequence_window.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <set>

namespace fabric::routing {
namespace {

using std::chrono::milliseconds;
using Verdict = SequenceWindows::Verdict;

TimePoint at(Duration time) {
  return TimePoint(time);
}

ForwardingState state_of(std::uint16_t hosts) {
  ForwardingState state;
  state.hosts.resize(hosts + 1u);
  for (std::uint16_t i = 1; i <= hosts; ++i) state.hosts[i].guid = Guid(i);
  return state;
}

/// Numbers of a source that has been sending for long.
constexpr std::uint32_t kBase = 1'000'000;
constexpr std::uint32_t kFirst = 0u - kBase;  ///< of a source that begins

FrameHeader frame(std::uint32_t sequence, unsigned way = 0, bool turned = false) {
  FrameHeader header;
  header.source = lid_of(HostIndex(1), 0);
  header.destination = lid_of(HostIndex(2), way);
  header.flags = turned ? FrameHeader::kTurned : 0;
  header.epoch = 7;
  header.sequence = kBase + sequence;
  return header;
}

struct SequenceWindowsTest : testing::Test {
  SequenceWindows windows{{.hold = milliseconds(10), .capacity = 64, .per_window = 16}};
  std::vector<std::uint32_t> delivered;
  TimePoint now = at(milliseconds(100));

  SequenceWindowsTest() { windows.prepare(state_of(2)); }
  Verdict accept(const FrameHeader& header) {
    return windows.accept(now, header, header.sequence - kBase, [&](auto slot) { delivered.push_back(slot); });
  }
  void expire() {
    windows.expire(now, [&](auto slot) { delivered.push_back(slot); });
  }
};

using Sequence = std::vector<std::uint32_t>;

TEST_F(SequenceWindowsTest, DropsDuplicatesWithinTheWindowAndWhatIsOlder) {
  for (std::uint32_t s = 1; s <= 5000; ++s) ASSERT_EQ(accept(frame(s)), Verdict::delivered);
  EXPECT_EQ(accept(frame(5000)), Verdict::duplicate);
  EXPECT_EQ(accept(frame(5000 - SequenceWindows::kWindow + 1)), Verdict::duplicate);
  EXPECT_EQ(accept(frame(5000 - SequenceWindows::kWindow)), Verdict::stale);
  EXPECT_EQ(delivered.size(), 5000u);
}

TEST_F(SequenceWindowsTest, AnOrdinaryDropStallsNobody) {
  accept(frame(1));
  EXPECT_EQ(accept(frame(3)), Verdict::delivered);
  EXPECT_EQ(accept(frame(2)), Verdict::delivered) << "late, but better than never";
  EXPECT_EQ(delivered, (Sequence{1, 3, 2}));
  EXPECT_EQ(windows.counters().late, 1u);
  EXPECT_EQ(windows.counters().gaps, 0u);
  EXPECT_FALSE(windows.deadline());
}

TEST_F(SequenceWindowsTest, WaitsForTurnedFramesAfterAChangeOfWay) {
  accept(frame(1));
  accept(frame(2));
  EXPECT_EQ(accept(frame(5, 1)), Verdict::held);
  EXPECT_EQ(accept(frame(6, 1)), Verdict::held);
  EXPECT_EQ(accept(frame(3, 1, true)), Verdict::delivered);
  EXPECT_EQ(accept(frame(5, 1, true)), Verdict::duplicate) << "held ones count as seen";
  EXPECT_EQ(accept(frame(4, 1, true)), Verdict::delivered);
  EXPECT_EQ(delivered, (Sequence{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(windows.held(), 0u);
  EXPECT_FALSE(windows.deadline());
}

TEST_F(SequenceWindowsTest, WaitsForTheLongWayWhenTheShortOneIsBack) {
  accept(frame(1, 1));
  accept(frame(4, 0));
  accept(frame(3, 1));  // 2 was dropped: ahead of it because the change is on
  EXPECT_EQ(windows.held(), 2u);
  now += milliseconds(9);
  expire();
  EXPECT_EQ(windows.held(), 2u);
  EXPECT_EQ(windows.deadline(), at(milliseconds(110)));
  now += milliseconds(1);
  expire();
  EXPECT_EQ(delivered, (Sequence{1, 3, 4}));
  EXPECT_EQ(windows.counters().expired, 1u);
  EXPECT_EQ(windows.counters().gaps, 1u);
  EXPECT_EQ(accept(frame(6, 0)), Verdict::delivered) << "the change is over";
}

TEST_F(SequenceWindowsTest, PassesOnInOrderWhenThereIsNoRoom) {
  accept(frame(1));
  for (std::uint32_t s = 100; s < 116; ++s) ASSERT_EQ(accept(frame(s, 1)), Verdict::held);
  EXPECT_EQ(accept(frame(99, 1)), Verdict::delivered);
  EXPECT_EQ(delivered.size(), 18u);
  EXPECT_TRUE(std::is_sorted(delivered.begin(), delivered.end()));
  EXPECT_EQ(windows.counters().overflows, 1u);

  accept(frame(200, 0));
  for (std::uint32_t s = 201; s < 216; ++s) ASSERT_EQ(accept(frame(s, 0)), Verdict::held);
  EXPECT_EQ(accept(frame(220, 0)), Verdict::delivered) << "behind all that is held";
  EXPECT_TRUE(std::is_sorted(delivered.begin(), delivered.end()));
  EXPECT_EQ(windows.held(), 0u);
}

TEST_F(SequenceWindowsTest, ARestartBeginsANewSequence) {
  accept(frame(1000));
  accept(frame(1002, 1));
  FrameHeader next = frame(kFirst);
  next.epoch = 8;
  EXPECT_EQ(accept(next), Verdict::delivered);
  EXPECT_EQ(delivered, (Sequence{1000, 1002, kFirst})) << "what was held goes first";
  EXPECT_EQ(accept(frame(1003)), Verdict::stale);
  next.sequence = 1;
  EXPECT_EQ(accept(next), Verdict::delivered);
}

TEST_F(SequenceWindowsTest, WaitsForTheFirstFramesOfASource) {
  EXPECT_EQ(accept(frame(kFirst + 2, 0, true)), Verdict::held) << "the ones before may be on the other way";
  EXPECT_EQ(accept(frame(kFirst + 3, 0, true)), Verdict::held);
  EXPECT_EQ(accept(frame(kFirst)), Verdict::delivered);
  EXPECT_EQ(accept(frame(kFirst + 1)), Verdict::delivered);
  EXPECT_EQ(delivered, (Sequence{kFirst, kFirst + 1, kFirst + 2, kFirst + 3}));

  // This host was away when they came: nothing is missing, and nothing waits for longer than `hold`.
  FrameHeader other = frame(kFirst + 7);
  other.lane = 3;
  EXPECT_EQ(accept(other), Verdict::held);
  now += milliseconds(10);
  expire();
  EXPECT_EQ(delivered.back(), kFirst + 7);
  other = frame(5000);
  other.lane = 4;
  EXPECT_EQ(accept(other), Verdict::delivered);
}

TEST_F(SequenceWindowsTest, ARestartWithTheSameEpochIsNoticed) {
  accept(frame(1'000'000));
  std::uint32_t lost = 0;
  for (std::uint32_t s = 1; s < 100; ++s) lost += accept(frame(s)) != Verdict::delivered;
  EXPECT_LT(lost, 32u);
}

TEST_F(SequenceWindowsTest, SequenceNumbersWrap) {
  accept(frame(0xFFFFFFFE));
  accept(frame(0xFFFFFFFF));
  EXPECT_EQ(accept(frame(1, 1)), Verdict::held);
  EXPECT_EQ(accept(frame(0, 1, true)), Verdict::delivered);
  EXPECT_EQ(accept(frame(0xFFFFFFFF, 1, true)), Verdict::duplicate);
  EXPECT_EQ(delivered, (Sequence{0xFFFFFFFE, 0xFFFFFFFF, 0, 1}));
}

TEST_F(SequenceWindowsTest, SourcesAndLanesDoNotMix) {
  FrameHeader other = frame(1);
  other.lane = 3;
  EXPECT_EQ(accept(frame(1)), Verdict::delivered);
  EXPECT_EQ(accept(other), Verdict::delivered);
  other.source = lid_of(HostIndex(2), 0);
  EXPECT_EQ(accept(other), Verdict::delivered);
  other.source = lid_of(HostIndex(3), 0);
  EXPECT_EQ(accept(other), Verdict::unknown);
}

// A source that changes its way at random times; each way (and the turned frames) in order by itself, with a
// delay of its own below `hold`; copies; no drops: everything is delivered once and in order. The oracle is
// the order of sending.
TEST(SequenceWindowsRandom, OnceAndInOrderWhateverTheWays) {
  int in_order = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const SequenceWindows::Settings settings{.hold = milliseconds(10), .capacity = 4096, .per_window = 4096};
    SequenceWindows windows(settings);
    windows.prepare(state_of(2));
    struct Sent {
      Duration arrival;
      FrameHeader header;
    };
    std::vector<Sent> sent;
    std::array<Duration, 4> latest{}, delay{};
    unsigned path = 0;
    const std::uint32_t first = random();
    Duration time = milliseconds(100), changed{};
    for (std::uint32_t i = 0; i < 2000; ++i) {
      time += std::chrono::microseconds(random() % 20);
      if (random() % 300 == 0) {
        path = random() % 4;
        changed = time;
        delay[path] = std::chrono::microseconds(random() % 4000);
      }
      latest[path] = std::max(latest[path], time + delay[path]);
      Sent one{latest[path], frame(first + i, path >> 1, path & 1)};
      if (time - changed < settings.hold) one.header.flags |= FrameHeader::kSteered;
      sent.push_back(one);
      if (random() % 10 == 0) {
        const unsigned copy = random() % 4;
        latest[copy] = std::max(latest[copy], time + delay[copy]);
        // A copy comes after the original, as a resent frame does, or it would be the original.
        if (latest[copy] >= one.arrival)
          sent.push_back({latest[copy], frame(first + i, copy >> 1, copy & 1)});
      }
    }
    std::stable_sort(sent.begin(), sent.end(), [](auto& a, auto& b) { return a.arrival < b.arrival; });
    std::vector<std::uint32_t> delivered;
    const auto deliver = [&](auto slot) { delivered.push_back(slot - first); };
    for (const Sent& one : sent) {
      windows.expire(TimePoint(one.arrival), deliver);
      windows.accept(TimePoint(one.arrival), one.header, one.header.sequence, deliver);
    }
    windows.expire(TimePoint::max(), deliver);
    EXPECT_EQ(delivered.size(), 2000u);
    EXPECT_EQ(std::set(delivered.begin(), delivered.end()).size(), 2000u) << "twice";
    if (windows.counters().expired == 0) {  // the ways changed faster than `hold`
      ++in_order;
      EXPECT_TRUE(std::is_sorted(delivered.begin(), delivered.end()));
      EXPECT_EQ(windows.counters().late, 0u);
    }
    EXPECT_EQ(windows.held(), 0u);
  }
  EXPECT_GT(in_order, 250);
}

// Drops, jumps, any order: never twice, held no longer than `hold`, no slot lost or invented.
TEST(SequenceWindowsRandom, ConservesSlotsInAnyCase) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    SequenceWindows windows({.hold = milliseconds(2), .capacity = 32, .per_window = 8});
    windows.prepare(state_of(4));
    std::set<std::uint32_t> inside;
    std::map<std::uint32_t, TimePoint> since;
    TimePoint now = at(milliseconds(1));
    std::uint32_t slot = 0, base = random();
    std::set<std::tuple<unsigned, unsigned, std::uint32_t>> seen;
    for (int i = 0; i < 3000; ++i) {
      now += std::chrono::microseconds(random() % 300);
      const auto deliver = [&](std::uint32_t done) {
        ASSERT_EQ(inside.erase(done), 1u);
        EXPECT_LE(now - since[done], milliseconds(2) + std::chrono::microseconds(300));
      };
      windows.expire(now, deliver);
      FrameHeader header = frame(base + random() % 64, random() % 2, random() % 3 == 0);
      base += random() % 3;
      header.source = lid_of(HostIndex(static_cast<std::uint16_t>(1 + random() % 4)), 0);
      header.lane = static_cast<std::uint8_t>(random() % 2);
      inside.insert(++slot);
      since[slot] = now;
      const Verdict verdict = windows.accept(now, header, slot, deliver);
      const bool fresh = seen.insert({header.source.value(), header.lane, header.sequence}).second;
      if (verdict == Verdict::delivered || verdict == Verdict::held) {
        EXPECT_TRUE(fresh);
      } else {
        ASSERT_EQ(inside.erase(slot), 1u);
      }
      ASSERT_EQ(windows.held(), inside.size());
    }
  }
}

}  // namespace
}  // namespace fabric::routing
