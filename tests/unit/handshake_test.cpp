// The handshake core: two of them over a lossy cable in simulated time, with queue pairs that know what they
// are connected to.
#include "verbs/handshake.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <tuple>

namespace fabric::verbs::handshake {
namespace {

using namespace std::chrono_literals;

std::uint64_t base_seed() {
  const char* text = std::getenv("FABRIC_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 0) : 1;
}

class World {
 public:
  struct End {
    std::unique_ptr<Handshake> core;
    unsigned life = 0;
    bool prepared = false, up = false;
    std::uint32_t qpn = 0;      ///< of the data queue pair; the control queue pair's is one more
    std::uint32_t towards = 0;  ///< the other end's, once in RTS
    std::vector<std::string> events;
  };

  explicit World(std::uint64_t seed) : random(seed) {}

  void start(int side, Guid host = {}) {
    End& end = ends[side];
    if (host == Guid{}) host = Guid{100U + static_cast<unsigned>(side)};
    ++incarnation;
    end.core = std::make_unique<Handshake>(
        Identity{.host = host, .name = "h" + std::to_string(side), .port = 0, .incarnation = incarnation});
    ++end.life;
    if (link) give(side, LinkActive{.mtu = 5});
  }
  void kill(int side) {
    const unsigned life = ends[side].life + 1;
    ends[side] = {};
    ends[side].life = life;
  }
  void connect(bool on) {
    link = on;
    for (int side : {0, 1})
      give(side, on ? Event(LinkActive{.mtu = 5}) : Event(LinkLost{"event", "the link was lost"}));
  }

  void give(int side, const Event& event) {
    End& end = ends[side];
    if (!end.core) return;
    std::vector<Action> actions = end.core->handle(now, event);
    for (const Action& action : actions) std::visit([&](const auto& a) { perform(side, a); }, action);
    if (!end.core) return;
    const auto due = end.core->next_timer();
    if (due && timers[side] != due) {
      timers[side] = due;
      at(std::max(now, *due), [this, side, due = *due, life = end.life] {
        if (ends[side].life != life || timers[side] != due) return;
        timers[side].reset();
        give(side, TimerExpired{});
      });
    } else if (!due) {
      timers[side].reset();
    }
  }

  void perform(int side, const Send& send) {
    ++messages;
    std::array<std::uint8_t, kMessageSize> bytes;
    encode(send.message, bytes);
    const auto message = decode(bytes);
    ASSERT_TRUE(message || send.message.identity.version != kVersion);
    const auto chance = [&](double p) { return std::uniform_real_distribution<>(0, 1)(random) < p; };
    const int copies = chance(loss) ? 0 : chance(duplication) ? 2 : 1;
    for (int i = 0; i < copies; ++i)
      at(now +
             Duration(std::uniform_int_distribution<std::int64_t>(shortest.count(), longest.count())(random)),
         [this, side, message = *message] {
           if (link) give(1 - side, Received{message});
         });
  }
  void perform(int side, const Open&) {
    End& end = ends[side];
    ASSERT_FALSE(end.prepared);
    if (fail_open) return give(side, Failed{"no memory"});
    end.prepared = true;
    end.qpn = next_qpn += 2;
    end.towards = 0;
    give(side, Opened{{Qpn{end.qpn}, end.qpn}, {Qpn{end.qpn + 1}, end.qpn}});
  }
  void perform(int side, const Connect& connect) {
    End& end = ends[side];
    ASSERT_TRUE(end.prepared);
    ASSERT_EQ(end.towards, 0U) << "a queue pair is connected once";
    EXPECT_EQ(connect.mtu, 5);
    end.towards = connect.peer.data.qpn.value();
    EXPECT_EQ(connect.peer.control.qpn.value(), end.towards + 1);
    give(side, Connected{});
  }
  void perform(int side, const Up&) {
    End& end = ends[side];
    ASSERT_TRUE(end.prepared);
    ASSERT_FALSE(end.up);
    end.up = true;
    end.events.push_back("up");
    if (check_up) {
      EXPECT_EQ(ends[1 - side].qpn, end.towards);
      EXPECT_EQ(ends[1 - side].towards, end.qpn) << "up before the other end can receive";
    }
  }
  void perform(int side, const Down& down) {
    End& end = ends[side];
    ASSERT_TRUE(end.prepared);
    end.events.push_back("down " + down.detector);
    end.prepared = end.up = false;
    end.qpn = end.towards = 0;
  }
  void perform(int side, const Met& met) { ends[side].events.push_back("met " + met.neighbour.name); }
  void perform(int side, const Refused& refused) { ends[side].events.push_back("refused " + refused.reason); }

  void at(TimePoint when, std::function<void()> what) { queue.push({when, order++, std::move(what)}); }
  void run(Duration duration) {
    const TimePoint end = now + duration;
    while (!queue.empty() && queue.top().when <= end) step();
    now = end;
  }
  void step() {
    auto entry = queue.top();
    queue.pop();
    now = entry.when;
    entry.what();
  }
  std::optional<Duration> run_until(const std::function<bool()>& condition, Duration limit) {
    const TimePoint begin = now;
    while (!condition()) {
      if (queue.empty() || queue.top().when > begin + limit) return std::nullopt;
      step();
    }
    return now - begin;
  }
  [[nodiscard]] bool both_up() const {
    return ends[0].up && ends[1].up && ends[0].towards == ends[1].qpn && ends[1].towards == ends[0].qpn;
  }

  std::array<End, 2> ends;
  std::mt19937_64 random;
  double loss = 0, duplication = 0;
  Duration shortest = 50us, longest = 50us;
  bool link = true, fail_open = false, check_up = true;
  TimePoint now{};
  unsigned messages = 0;

 private:
  struct Entry {
    TimePoint when;
    std::uint64_t order;
    std::function<void()> what;
    bool operator<(const Entry& other) const {
      return std::tie(when, order) > std::tie(other.when, other.order);
    }
  };
  std::priority_queue<Entry> queue;
  std::uint64_t order = 0;
  std::array<std::optional<TimePoint>, 2> timers;
  std::uint32_t next_qpn = 100, incarnation = 1000;
};

TEST(Handshake, TwoRoundTrips) {
  World world(1);
  world.start(0);
  world.start(1);
  const auto took = world.run_until([&] { return world.both_up(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_EQ(*took, 150us);
  EXPECT_EQ(world.ends[0].core->neighbour()->name, "h1");
  world.run(10s);
  EXPECT_LE(world.messages, 8U) << "silent once up";
}

TEST(Handshake, LateStartOfTheOtherEnd) {
  World world(1);
  world.start(0);
  world.run(20s);
  EXPECT_GE(world.ends[0].core->unanswered(), 10U);
  EXPECT_LE(world.ends[0].core->unanswered(), 40U) << "backs off";
  world.start(1);
  const auto took = world.run_until([&] { return world.both_up(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LE(*took, 300us);
}

TEST(Handshake, RestartIsFoundOutAtOnce) {
  World world(1);
  world.start(0);
  world.start(1);
  ASSERT_TRUE(world.run_until([&] { return world.both_up(); }, 1s));
  world.run(1s);
  world.kill(1);
  world.run(1s);
  EXPECT_TRUE(world.ends[0].up) << "nothing said so";
  world.start(1);
  const auto dropped = world.run_until([&] { return !world.ends[0].up; }, 1s);
  ASSERT_TRUE(dropped);
  EXPECT_LE(*dropped, 150us);
  EXPECT_EQ(world.ends[0].events, (std::vector<std::string>{"met h1", "up", "down peer", "met h1"}));
  const auto took = world.run_until([&] { return world.both_up(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LE(*took, 200us);
}

TEST(Handshake, GoodbyeDropsAtOnce) {
  World world(1);
  world.start(0);
  world.start(1);
  ASSERT_TRUE(world.run_until([&] { return world.both_up(); }, 1s));
  world.give(1, Stop{});
  EXPECT_EQ(world.ends[1].events.back(), "down local");
  const auto dropped = world.run_until([&] { return !world.ends[0].up; }, 1s);
  ASSERT_TRUE(dropped);
  EXPECT_LE(*dropped, 50us);
  EXPECT_EQ(world.ends[0].events.back(), "down peer");
  EXPECT_EQ(world.ends[0].core->state(), State::seeking);
}

TEST(Handshake, ResetIsOneShortInterruption) {
  World world(1);
  world.start(0);
  world.start(1);
  ASSERT_TRUE(world.run_until([&] { return world.both_up(); }, 1s));
  world.run(1s);
  world.give(0, Reset{"heartbeat", "silence"});
  EXPECT_EQ(world.ends[0].events.back(), "down heartbeat");
  const auto took = world.run_until([&] { return world.both_up(); }, 1s);
  ASSERT_TRUE(took);
  EXPECT_LE(*took, 250us);
  EXPECT_EQ(world.ends[1].events, (std::vector<std::string>{"met h0", "up", "down peer", "up"}));
}

TEST(Handshake, CableToOneself) {
  World world(1);
  world.start(0, Guid{7});
  world.start(1, Guid{7});
  world.run(5s);
  EXPECT_EQ(world.ends[0].core->state(), State::refused);
  EXPECT_EQ(world.ends[1].core->state(), State::refused);
  EXPECT_EQ(world.ends[0].events.back(), "refused The neighbour has this host's GUID 0x0000000000000007.");
  EXPECT_LE(world.messages, 60U);
}

TEST(Handshake, OtherVersion) {
  Message message;
  message.kind = Kind::hello;
  message.identity = {.host = Guid{9}, .name = "future", .incarnation = 4, .version = kVersion + 1};
  message.session = {4, 1};
  std::array<std::uint8_t, kMessageSize> bytes;
  encode(message, bytes);
  const auto decoded = decode(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->identity.host, Guid{9});
  EXPECT_EQ(decoded->kind, Kind::hello);
  World world(1);
  world.start(0);
  world.give(0, Received{*decoded});
  EXPECT_EQ(world.ends[0].core->state(), State::refused);
  EXPECT_EQ(world.ends[0].events.back(),
            "refused The neighbour speaks version 2 of the protocol, this end 1.");
  world.start(1);  // somebody else is plugged in
  EXPECT_TRUE(world.run_until([&] { return world.both_up(); }, 3s));
}

TEST(Handshake, NobodyIsHost0OrHasPort255) {
  Message message;
  message.identity = {.host = Guid{9}, .name = "h9", .incarnation = 4, .version = kVersion};
  message.session = {4, 1};
  std::array<std::uint8_t, kMessageSize> bytes;
  encode(message, bytes);
  EXPECT_TRUE(decode(bytes));
  message.identity.host = Guid{};
  encode(message, bytes);
  EXPECT_FALSE(decode(bytes));
  message.identity.host = Guid{9};
  message.identity.port = kNoPort.value();
  encode(message, bytes);
  EXPECT_FALSE(decode(bytes));
}

TEST(Handshake, HoldsBackWhenQueuePairsCannotBeMade) {
  World world(1);
  world.fail_open = true;
  world.start(0);
  world.start(1);
  world.run(10s);
  EXPECT_LE(world.messages, 100U);
  world.fail_open = false;
  EXPECT_TRUE(world.run_until([&] { return world.both_up(); }, 2s));
}

TEST(Handshake, ReplayedMessagesOfAnEarlierLifeChangeNothing) {
  World world(1);
  world.start(0);
  world.start(1);
  ASSERT_TRUE(world.run_until([&] { return world.both_up(); }, 1s));
  Message old;
  old.identity = {.host = Guid{101}, .name = "h1", .incarnation = 5, .version = kVersion};
  old.session = {5, 77};
  old.mtu = 5;
  old.data = {Qpn{9}, 9};
  old.control = {Qpn{10}, 9};
  for (const Progress progress : {Progress::seeking, Progress::open, Progress::ready, Progress::up}) {
    old.progress = progress;
    world.give(0, Received{old});
    old.kind = Kind::goodbye;
    world.give(0, Received{old});
    old.kind = Kind::hello;
  }
  world.run(1s);
  EXPECT_TRUE(world.both_up());
  EXPECT_EQ(world.ends[0].events, (std::vector<std::string>{"met h1", "up"}));
}

TEST(Handshake, RandomFaults) {
  Duration worst{};
  for (std::uint64_t seed = base_seed(); seed < base_seed() + 2000; ++seed) {
    SCOPED_TRACE("FABRIC_SEED=" + std::to_string(seed));
    World world(seed);
    world.loss = 0.25;
    world.duplication = 0.1;
    world.shortest = 10us;
    world.longest = 20ms;
    world.check_up = false;  // a kill or a reset may overtake what was said
    auto& random = world.random;
    for (int i = 0; i < 15; ++i) {
      const int side = static_cast<int>(random() % 2);
      switch (random() % 7) {
        case 0:
          world.connect(false);
          break;
        case 1:
          world.connect(true);
          break;
        case 2:
          world.kill(side);
          break;
        case 3:
          if (!world.ends[side].core) world.start(side);
          break;
        case 4:
          world.give(side, Reset{"heartbeat", "silence"});
          break;
        case 5:
          world.give(side, Stop{});
          world.kill(side);
          break;
        default:
          world.fail_open = random() % 4 == 0;
      }
      world.run(Duration(random() % 100'000'000));
    }
    world.fail_open = false;
    if (!world.link) world.connect(true);
    for (int side : {0, 1})
      if (!world.ends[side].core) world.start(side);
    world.loss = world.duplication = 0;
    const auto took = world.run_until([&] { return world.both_up(); }, 3s);
    ASSERT_TRUE(took) << static_cast<int>(world.ends[0].core->state()) << ' '
                      << static_cast<int>(world.ends[1].core->state());
    worst = std::max(worst, *took);
    world.run(2s);  // and stay so, whatever was still under way
    ASSERT_TRUE(world.both_up());
    const unsigned before = world.messages;
    world.run(5s);
    ASSERT_EQ(world.messages, before);
  }
  RecordProperty("worst_ms", static_cast<int>(worst / 1ms));
}

// Without resets the promise is strict: up means that the other end is connected to exactly these queue
// pairs.
TEST(Handshake, UpMeansThatTheOtherEndCanReceive) {
  for (std::uint64_t seed = base_seed(); seed < base_seed() + 500; ++seed) {
    SCOPED_TRACE("FABRIC_SEED=" + std::to_string(seed));
    World world(seed);
    world.loss = 0.4;
    world.duplication = 0.2;
    world.shortest = 10us;
    world.longest = 50ms;
    world.start(0);
    world.start(1);
    ASSERT_TRUE(world.run_until([&] { return world.both_up(); }, 20s));
  }
}

TEST(Message, RoundTrip) {
  Message message;
  message.kind = Kind::hello;
  message.progress = Progress::ready;
  message.identity = {.host = Guid{0x1122334455667788},
                      .name = std::string(70, 'n'),
                      .port = 3,
                      .incarnation = 0xAABBCCDD,
                      .version = kVersion};
  message.session = {0xAABBCCDD, 17};
  message.peer_session = {1, 2};
  message.data = {Qpn{0x123456}, 0xABCDEF};
  message.control = {Qpn{0x123457}, 0x1};
  message.mtu = 5;
  message.reason = "because";
  std::array<std::uint8_t, kMessageSize> bytes;
  encode(message, bytes);
  const auto decoded = decode(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->progress, Progress::ready);
  EXPECT_EQ(decoded->identity.host, message.identity.host);
  EXPECT_EQ(decoded->identity.name, std::string(63, 'n'));
  EXPECT_EQ(decoded->identity.port, 3);
  EXPECT_EQ(decoded->identity.incarnation, 0xAABBCCDDU);
  EXPECT_EQ(decoded->session, message.session);
  EXPECT_EQ(decoded->peer_session, message.peer_session);
  EXPECT_EQ(decoded->data, message.data);
  EXPECT_EQ(decoded->control, message.control);
  EXPECT_EQ(decoded->mtu, 5);
  EXPECT_EQ(decoded->reason, "because");
}

TEST(Message, RefusesNonsense) {
  std::mt19937_64 random(base_seed());
  std::array<std::uint8_t, kMessageSize> bytes;
  unsigned decoded = 0;
  Handshake core({.host = Guid{1}, .incarnation = 2});
  TimePoint now{};
  (void)core.handle(now, LinkActive{.mtu = 5});
  for (int i = 0; i < 20000; ++i) {
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    bytes[0] = 'F', bytes[1] = 'B', bytes[2] = 'R', bytes[3] = 'C';
    bytes[4] = 0, bytes[5] = 1;
    bytes[6] = static_cast<std::uint8_t>(random() % 4);
    bytes[7] = static_cast<std::uint8_t>(random() % 5);
    if (random() % 2 == 0) {
      bytes[21] = 5;
      for (const std::size_t at : {36U, 40U, 44U, 48U}) bytes[at] = 0;
    }
    const auto message = decode(bytes);
    if (!message) continue;
    ++decoded;
    EXPECT_LE(message->identity.name.size(), kTextSize);
    for (const Action& action : core.handle(now, Received{*message})) {
      if (std::holds_alternative<Open>(action))
        (void)core.handle(now, Opened{{Qpn{5}, 1}, {Qpn{6}, 1}});
      else if (std::holds_alternative<Connect>(action))
        (void)core.handle(now, Connected{});
    }
    now += 1ms;
    (void)core.handle(now, TimerExpired{});
  }
  EXPECT_GT(decoded, 1000U);
}

}  // namespace
}  // namespace fabric::verbs::handshake
