// Two control channels over verbs within the process: order, credits, the heartbeat, and failures.
#include "verbs/control_channel.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tests/unit/fake_verbs.hpp"

namespace fabric::verbs {
namespace {

using namespace std::chrono_literals;

struct End {
  End() {
    ControlChannel::Callbacks callbacks;
    callbacks.received = [this](std::span<const std::byte> message) {
      received.emplace_back(message.begin(), message.end());
      if (on_message) on_message();
    };
    callbacks.failed = [this](const std::string& detector, const std::string& reason) {
      failures.emplace_back(detector, reason);
    };
    channel = std::make_unique<ControlChannel>(&adapter.context, &adapter.pd, callbacks, Duration(5ms));
    connect();
  }
  void connect() {
    CableResources resources;
    channel->fill(resources);
    pair = adapter.make_pair(resources.control_cq);
    channel->prepare(pair);
  }

  fake::Adapter adapter;
  std::vector<std::vector<std::byte>> received;
  std::vector<std::pair<std::string, std::string>> failures;
  std::function<void()> on_message;
  fake::QueuePair* pair = nullptr;
  std::unique_ptr<ControlChannel> channel;
};

std::vector<std::byte> message(std::size_t size, unsigned number) {
  std::vector<std::byte> bytes(size, std::byte(number));
  if (size >= 4) std::memcpy(bytes.data(), &number, 4);
  return bytes;
}

class ControlChannelTest : public testing::Test {
 protected:
  ControlChannelTest() {
    fake::join(a.pair, b.pair);
    a.channel->attach(now);
    b.channel->attach(now);
  }
  /// One turn of both owners' event loops.
  void turn() {
    a.channel->ready();
    b.channel->ready();
  }
  /// Time goes on, in steps, with ticks when they are due.
  void advance(Duration duration) {
    for (const TimePoint end = now + duration; now < end; now += 1ms)
      for (End* end_of : {&a, &b}) {
        if (const auto tick = end_of->channel->next_tick(); tick && *tick <= now) end_of->channel->tick(now);
        end_of->channel->ready();
      }
  }
  TimePoint now{1s};
  End a, b;
};

TEST_F(ControlChannelTest, MessagesOfAllSizesArriveWholeAndInOrder) {
  std::vector<std::vector<std::byte>> sent;
  for (unsigned i = 0; i < 500; ++i) {
    sent.push_back(message(i % 7 == 0 ? ControlChannel::kMaxMessage : 1 + i % 100, i));
    a.channel->send(sent.back());
  }
  for (int i = 0; i < 200 && b.received.size() < sent.size(); ++i) turn();
  EXPECT_EQ(b.received, sent);
  EXPECT_EQ(a.channel->counters().messages_sent, 500u);
  EXPECT_TRUE(a.failures.empty() && b.failures.empty());
}

TEST_F(ControlChannelTest, ASenderNeverFindsNoReceive) {
  // The other end does not take anything: what is on the way is bounded by its receives.
  for (unsigned i = 0; i < 1000; ++i) a.channel->send(message(10, i));
  for (int i = 0; i < 100; ++i) a.channel->ready();
  EXPECT_TRUE(a.pair->sends.empty()) << "nothing waits at a receiver that is not ready";
  EXPECT_GT(b.pair->receives.size(), 0u);
  EXPECT_GT(a.channel->counters().waits_for_credit, 0u);
  for (int i = 0; i < 200 && b.received.size() < 1000; ++i) turn();
  EXPECT_EQ(b.received.size(), 1000u);
}

TEST_F(ControlChannelTest, BothDirectionsFullOfTrafficAtRandomPace) {
  const char* wish = std::getenv("TEST_SEED");
  const auto seed = wish != nullptr ? static_cast<unsigned>(std::atoi(wish)) : std::random_device{}();
  SCOPED_TRACE(testing::Message() << "TEST_SEED=" << seed);
  std::mt19937 random(seed);
  std::vector<std::vector<std::byte>> from_a, from_b;
  for (int i = 0; i < 20'000; ++i) {
    const auto size = 1 + random() % 200;
    switch (random() % 5) {
      case 0:
        from_a.push_back(message(size, static_cast<unsigned>(i)));
        a.channel->send(from_a.back());
        break;
      case 1:
        from_b.push_back(message(size, static_cast<unsigned>(i)));
        b.channel->send(from_b.back());
        break;
      case 2:
        a.channel->ready();
        break;
      case 3:
        b.channel->ready();
        break;
      default:
        break;
    }
    ASSERT_TRUE(a.pair->sends.empty() && b.pair->sends.empty()) << "a send found no receive";
  }
  for (int i = 0; i < 2000; ++i) turn();
  EXPECT_EQ(b.received, from_a);
  EXPECT_EQ(a.received, from_b);
}

TEST_F(ControlChannelTest, HeartbeatOnlyWhenIdleAndOneAtATime) {
  advance(100ms);
  const auto idle = a.channel->counters().heartbeats;
  EXPECT_GE(idle, 15u);
  EXPECT_LE(idle, 21u);
  for (int i = 0; i < 100; ++i) {
    a.channel->send(message(10, 0));
    advance(1ms);
  }
  EXPECT_LE(a.channel->counters().heartbeats - idle, 1u) << "messages prove as much";
  // Nothing is acknowledged any more: no second one is posted.
  a.pair->fault.dead = true;
  advance(100ms);
  EXPECT_EQ(a.pair->sends.size(), 1u);
  EXPECT_TRUE(a.failures.empty()) << "the adapter decides when the cable is dead";
  a.pair->fail(IBV_WC_RETRY_EXC_ERR);
  a.channel->ready();
  ASSERT_EQ(a.failures.size(), 1u);
  EXPECT_EQ(a.failures[0].first, "heartbeat");
  EXPECT_FALSE(a.channel->next_tick());
}

TEST_F(ControlChannelTest, ABusyNeighbourIsNotBlamed) {
  // b's process does nothing for a second; its adapter acknowledges the heartbeats.
  for (int i = 0; i < 1000; ++i, now += 1ms) {
    if (const auto tick = a.channel->next_tick(); tick && *tick <= now) a.channel->tick(now);
    a.channel->ready();
  }
  EXPECT_GT(a.channel->counters().heartbeats, 100u);
  EXPECT_TRUE(a.failures.empty());
}

TEST_F(ControlChannelTest, AFailedSendIsReportedOnce) {
  a.pair->fault.dead = true;
  for (unsigned i = 0; i < 5; ++i) a.channel->send(message(10, i));
  a.pair->fail(IBV_WC_RETRY_EXC_ERR);
  for (int i = 0; i < 5; ++i) a.channel->ready();
  ASSERT_EQ(a.failures.size(), 1u);
  EXPECT_EQ(a.failures[0].first, "completion");
  a.channel->send(message(10, 9));  // of no use, and no harm
}

TEST_F(ControlChannelTest, ANewConnectionKnowsNothingOfTheOld) {
  a.pair->hold = true;
  for (unsigned i = 0; i < 100; ++i) a.channel->send(message(10, i));
  a.channel->detach();
  b.channel->detach();
  turn();
  EXPECT_TRUE(a.failures.empty()) << "flushed by ourselves";
  a.connect();
  b.connect();
  fake::join(a.pair, b.pair);
  a.channel->attach(now);
  b.channel->attach(now);
  a.channel->send(message(10, 777));
  for (int i = 0; i < 10; ++i) turn();
  ASSERT_EQ(b.received.size(), 1u);
  EXPECT_EQ(b.received[0], message(10, 777));
  EXPECT_TRUE(a.failures.empty() && b.failures.empty());
}

TEST_F(ControlChannelTest, WhatComesBeforeAttachWaits) {
  a.channel->detach();
  b.channel->detach();
  a.connect();
  b.connect();
  fake::join(a.pair, b.pair);
  a.channel->attach(now);
  a.channel->send(message(10, 1));
  turn();
  EXPECT_TRUE(b.received.empty());
  b.channel->attach(now);
  advance(2ms);
  EXPECT_EQ(b.received.size(), 1u);
}

TEST_F(ControlChannelTest, DetachInsideACallback) {
  b.on_message = [this] { b.channel->detach(); };
  a.channel->send(message(10, 1));
  a.channel->send(message(10, 2));
  for (int i = 0; i < 5; ++i) turn();
  EXPECT_EQ(b.received.size(), 1u);
  EXPECT_FALSE(b.channel->next_tick());
}

TEST_F(ControlChannelTest, NonsenseCostsTheConnectionOnly) {
  std::array<std::byte, 9> nonsense{};
  nonsense[5] = std::byte{200};  // says 200 bytes, has one
  ibv_sge sge{reinterpret_cast<std::uintptr_t>(nonsense.data()), nonsense.size(), 0};
  ibv_send_wr request{};
  request.sg_list = &sge;
  request.num_sge = 1;
  request.opcode = IBV_WR_SEND;
  ibv_send_wr* bad = nullptr;
  ASSERT_EQ(ibv_post_send(a.pair, &request, &bad), 0);
  b.channel->ready();
  ASSERT_EQ(b.failures.size(), 1u);
  EXPECT_NE(b.failures[0].second.find("malformed"), std::string::npos);
  EXPECT_TRUE(b.received.empty());
}

}  // namespace
}  // namespace fabric::verbs
