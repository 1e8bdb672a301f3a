// What gateways tell each other over link state: it reaches every host, before its host counts as reachable,
// and moves no way.
#include <gtest/gtest.h>

#include <deque>

#include "routing/messages.hpp"
#include "routing/node.hpp"

namespace fabric::routing {
namespace {

using std::chrono::milliseconds;

/// Two hosts with one cable; every message arrives at once.
class Pair {
 public:
  struct Seen {
    std::vector<GatewayHeard> heard;
    std::vector<ReachabilityChanged> reachability;
    std::vector<std::string> order;  ///< "heard", "reachable", "gone"
    unsigned published = 0;
  };

  Pair() {
    for (unsigned i = 0; i < 2; ++i) {
      NodeSettings settings;
      settings.guid = guid(i);
      settings.name = "h" + std::to_string(i + 1);
      nodes_.emplace_back(settings);
      feed(i, TimerExpired{});
    }
  }
  static Guid guid(unsigned host) { return Guid(host + 1); }

  void cable(bool up) {
    for (unsigned i = 0; i < 2; ++i) {
      if (up)
        feed(i, CableUp{PortIndex(0), {guid(1 - i), "h" + std::to_string(2 - i), 0, 0}, 100'000'000'000, 0},
             false);
      else
        feed(i, CableDown{PortIndex(0), "test"}, false);
    }
    deliver();
    run(milliseconds(2000));
  }
  void feed(unsigned host, const Event& event, bool now = true) {
    for (const Action& action : nodes_[host].handle(now_, event)) note(host, action);
    if (now) deliver();
  }
  void run(Duration time) {
    for (const TimePoint end = now_ + time; now_ < end;) {
      now_ += milliseconds(1);
      for (unsigned i = 0; i < 2; ++i)
        if (const auto timer = nodes_[i].next_timer(); timer && *timer <= now_) feed(i, TimerExpired{});
    }
  }
  Seen seen[2];

 private:
  void note(unsigned host, const Action& action) {
    Seen& mine = seen[host];
    if (const auto* message = std::get_if<SendMessage>(&action))
      wire_.emplace_back(1 - host, message->message);
    if (const auto* heard = std::get_if<GatewayHeard>(&action)) {
      mine.heard.push_back(*heard);
      mine.order.emplace_back("heard");
    }
    if (const auto* change = std::get_if<ReachabilityChanged>(&action)) {
      mine.reachability.push_back(*change);
      mine.order.emplace_back(change->reachable ? "reachable" : "gone");
    }
    if (std::holds_alternative<Publish>(action)) ++mine.published;
  }
  void deliver() {
    while (!wire_.empty()) {
      const auto [to, message] = wire_.front();
      wire_.pop_front();
      feed(to, MessageReceived{PortIndex(0), message}, false);
    }
  }

  TimePoint now_{std::chrono::seconds(1)};
  std::deque<Node> nodes_;
  std::deque<std::pair<unsigned, std::vector<std::byte>>> wire_;
};

const std::vector<std::byte> kOne{std::byte{1}}, kTwo{std::byte{2}, std::byte{2}};

TEST(GatewayChannel, StateIsKnownBeforeItsHostIsReachable) {
  Pair pair;
  pair.feed(0, GatewayStateChanged{kOne});
  pair.cable(true);
  ASSERT_EQ(pair.seen[1].order, (std::vector<std::string>{"heard", "reachable"}));
  EXPECT_EQ(pair.seen[1].heard[0].host, Pair::guid(0));
  EXPECT_EQ(pair.seen[1].heard[0].state, kOne);
  EXPECT_EQ(pair.seen[0].order, (std::vector<std::string>{"reachable"})) << "h2 is no gateway";
}

TEST(GatewayChannel, ChangeArrivesAtOnceAndMovesNoWay) {
  Pair pair;
  pair.cable(true);
  const unsigned published = pair.seen[1].published;
  pair.feed(0, GatewayStateChanged{kTwo});  // without a moment's time passing
  ASSERT_EQ(pair.seen[1].heard.size(), 1u);
  EXPECT_EQ(pair.seen[1].heard[0].state, kTwo);
  pair.feed(0, GatewayStateChanged{kTwo});
  EXPECT_EQ(pair.seen[1].heard.size(), 1u) << "nothing new";
  pair.feed(0, GatewayStateChanged{{}});
  ASSERT_EQ(pair.seen[1].heard.size(), 2u);
  EXPECT_TRUE(pair.seen[1].heard[1].state.empty());
  pair.run(milliseconds(100));
  EXPECT_EQ(pair.seen[1].published, published);
}

TEST(GatewayChannel, LossOfTheLastCableIsTold) {
  Pair pair;
  pair.feed(0, GatewayStateChanged{kOne});
  pair.cable(true);
  pair.cable(false);
  EXPECT_EQ(pair.seen[1].order.back(), "gone");
  EXPECT_EQ(pair.seen[1].reachability.back().host, Pair::guid(0));
  pair.feed(0, GatewayStateChanged{kTwo});
  pair.cable(true);
  ASSERT_EQ(pair.seen[1].order,
            (std::vector<std::string>{"heard", "reachable", "gone", "heard", "reachable"}));
  EXPECT_EQ(pair.seen[1].heard.back().state, kTwo);
}

TEST(GatewayChannel, AtMostSoManyBytes) {
  Advertisement advertisement;
  advertisement.origin = Guid(1);
  advertisement.sequence = 1;
  advertisement.gateway.assign(kMaxGatewayState, std::byte{7});
  const auto decoded = decode_advertisement(encode(advertisement));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(*decoded, advertisement);
  advertisement.gateway.push_back(std::byte{7});
  EXPECT_FALSE(decode_advertisement(encode(advertisement)));
}

}  // namespace
}  // namespace fabric::routing
