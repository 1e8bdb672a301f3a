// The greeting core at both ends of a simulated cable (or at more ends of a simulated switch).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>

#include "fabricd/ethernet/greeting.hpp"

namespace fabric::daemon {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;
using Purpose = ConnectionParameters::Purpose;

verbs::Identity identity(std::uint64_t guid, std::uint8_t port = 0, std::uint32_t incarnation = 1) {
  return {Guid{guid}, "h" + std::to_string(guid), port, incarnation, 1};
}

/// Ends on one segment; carries what the cores ask for with a latency, or loses it.
class Segment {
 public:
  struct End {
    std::unique_ptr<Greeting> core;
    bool up = false;  ///< between Up and GiveUp
    unsigned ups = 0;
    std::vector<std::string> downs;  ///< "detector: reason" of each GiveUp after an Up
    verbs::Identity neighbour;
    std::uint16_t path_mtu = 0;
    std::uint8_t ack_timeout = 0;
    std::uint32_t attempt = 0;  ///< of the session
    Greeting::Session session = 0;
    std::size_t other = 0;  ///< the end that the session is with
    std::map<Greeting::Request, std::pair<std::size_t, Greeting::Session>> requests;  ///< from whom
    std::optional<TimePoint> timer;
    TimePoint up_at;
  };

  std::size_t add(const verbs::Identity& identity) {
    ends_.push_back(std::make_unique<End>());
    ends_.back()->core = std::make_unique<Greeting>(identity);
    return ends_.size() - 1;
  }
  End& end(std::size_t i) { return *ends_[i]; }
  TimePoint now() const { return now_; }
  void plug(std::size_t i, std::uint16_t mtu = 4096) {
    feed(i, Greeting::PortUsable{static_cast<std::uint16_t>(1000 + i), mtu});
  }
  void unplug(std::size_t i) {
    feed(i, Greeting::PortUnusable{verbs::CablePhase::down, "event", "nobody there"});
  }
  /// The daemon at this end is killed and a new one started.
  void restart(std::size_t i, const verbs::Identity& identity) {
    End& e = end(i);
    if (e.session != 0) disconnect(i);
    e.core = std::make_unique<Greeting>(identity);
    if (std::exchange(e.up, false)) e.downs.push_back("killed");
    e.session = 0;
    e.requests.clear();
    plug(i);
  }

  void feed(std::size_t i, const Greeting::Event& event) {
    End& e = end(i);
    const auto actions = e.core->handle(now_, event);
    for (const auto& action : actions) std::visit([&](const auto& a) { perform(i, a); }, action);
    e.timer = e.core->next_timer();
  }

  void run_for(Duration duration) { run_until(now_ + duration); }
  void run_until(TimePoint until) {
    for (int guard = 0; guard < 1'000'000; ++guard) {
      TimePoint next = until + Duration(1);
      std::size_t whose = ends_.size();
      for (std::size_t i = 0; i < ends_.size(); ++i) {
        if (ends_[i]->timer && *ends_[i]->timer < next) {
          next = *ends_[i]->timer;
          whose = i;
        }
      }
      if (!flight_.empty() && flight_.begin()->first < next) {
        const auto first = flight_.begin();
        now_ = std::max(now_, first->first);
        const auto deliver = first->second;
        flight_.erase(first);
        deliver();
      } else if (whose < ends_.size()) {
        now_ = std::max(now_, next);
        feed(whose, Greeting::TimerExpired{});
      } else {
        now_ = until;
        return;
      }
    }
    FAIL() << "timers do not advance";
  }

  double lose = 0;  ///< of announcements and requests
  bool lose_requests = false;
  std::mt19937 random{1};
  unsigned announcements = 0, rejections = 0;
  std::vector<std::string> reasons;  ///< of rejections

 private:
  void later(std::function<void()> what) { flight_.emplace(now_ + milliseconds(1), std::move(what)); }
  bool lost() { return std::uniform_real_distribution<>(0, 1)(random) < lose; }

  void disconnect(std::size_t i) {
    const std::size_t other = end(i).other;
    const std::uint32_t attempt = end(i).attempt;
    later([this, other, attempt] {
      End& e = end(other);
      if (e.session == 0 || e.attempt != attempt) return;
      if (e.up)
        feed(other, Greeting::Lost{"peer", "closed"});
      else
        feed(other, Greeting::Failed{e.session, "closed"});
    });
  }

  void perform(std::size_t i, const Greeting::Announce& action) {
    ++announcements;
    const Announcement announcement = *decode_announcement(encode(action.announcement));
    for (std::size_t j = 0; j < ends_.size(); ++j) {
      if (j == i || lost()) continue;
      Greeting::Address source{0xfe, 0x80};
      source[15] = static_cast<std::uint8_t>(i + 1);
      later([this, j, source, announcement] { feed(j, Greeting::Heard{source, announcement}); });
    }
  }
  void perform(std::size_t i, const Greeting::Connect& action) {
    End& e = end(i);
    EXPECT_EQ(e.session, 0u);
    e.session = action.session;
    e.attempt = action.parameters.attempt;
    e.other = action.service - 1000;
    EXPECT_EQ(action.address[15], e.other + 1);
    for (const Purpose purpose : {Purpose::data, Purpose::control}) {
      if (lose_requests || lost()) continue;
      ConnectionParameters wish = action.parameters;
      wish.purpose = purpose;
      later([this, i, j = e.other, wish, session = action.session] {
        const Greeting::Request number = ++last_request_;
        end(j).requests[number] = {i, session};
        feed(j, Greeting::Requested{number, wish});
      });
    }
  }
  void perform(std::size_t i, const Greeting::Accept& action) {
    End& e = end(i);
    EXPECT_EQ(e.session, 0u);
    const auto [from, session] = e.requests.at(action.data);
    EXPECT_EQ(e.requests.at(action.control), std::pair(from, session));
    e.session = action.session;
    e.attempt = action.parameters.attempt;
    e.other = from;
    e.requests.erase(action.data);
    e.requests.erase(action.control);
    for (const Purpose purpose : {Purpose::data, Purpose::control}) {
      ConnectionParameters reply = action.parameters;
      reply.purpose = purpose;
      later([this, from = from, session = session, reply] { feed(from, Greeting::Replied{session, reply}); });
    }
  }
  void perform(std::size_t i, const Greeting::Establish& action) {
    later([this, i, action] { feed(i, Greeting::Connected{action.session}); });
    const std::size_t other = end(i).other;
    const std::uint32_t attempt = end(i).attempt;
    later([this, other, attempt] {
      if (end(other).attempt == attempt) feed(other, Greeting::Connected{end(other).session});
    });
  }
  void perform(std::size_t i, const Greeting::Reject& action) {
    ++rejections;
    reasons.push_back(action.rejection.reason);
    const auto found = end(i).requests.find(action.request);
    ASSERT_NE(found, end(i).requests.end()) << "rejected twice, or accepted before";
    const auto [from, session] = found->second;
    end(i).requests.erase(found);
    later([this, from = from, session = session, reason = action.rejection.reason] {
      feed(from, Greeting::Failed{session, reason});
    });
  }
  void perform(std::size_t i, const Greeting::GiveUp& action) {
    End& e = end(i);
    if (e.session != action.session) return;  // it had not got as far as to have anything
    if (std::exchange(e.up, false)) e.downs.push_back(action.detector + ": " + action.reason);
    disconnect(i);
    e.session = 0;
  }
  void perform(std::size_t i, const Greeting::Up& action) {
    End& e = end(i);
    EXPECT_FALSE(e.up);
    EXPECT_NE(e.session, 0u);
    e.up = true;
    ++e.ups;
    e.up_at = now_;
    e.neighbour = action.neighbour;
    e.path_mtu = action.terms.path_mtu;
    e.ack_timeout = action.terms.ack_timeout;
  }

  TimePoint now_{};
  std::vector<std::unique_ptr<End>> ends_;
  std::multimap<TimePoint, std::function<void()>> flight_;
  Greeting::Request last_request_ = 0;
};

struct Pair : Segment {
  explicit Pair(std::uint64_t a = 1, std::uint64_t b = 2) {
    add(identity(a));
    add(identity(b, 1));
  }
  bool connected() { return end(0).up && end(1).up; }
};

TEST(EthernetGreeting, TwoEndsConnectInMilliseconds) {
  Pair cable;
  cable.plug(0, 4096);
  cable.plug(1, 1024);
  cable.run_for(milliseconds(10));
  ASSERT_TRUE(cable.connected());
  EXPECT_EQ(cable.end(0).neighbour.host, Guid{2});
  EXPECT_EQ(cable.end(0).neighbour.name, "h2");
  EXPECT_EQ(cable.end(0).neighbour.port, 1);
  EXPECT_EQ(cable.end(1).neighbour.host, Guid{1});
  EXPECT_EQ(cable.end(0).path_mtu, 1024);
  EXPECT_EQ(cable.end(1).path_mtu, 1024);
  EXPECT_EQ(cable.end(0).core->counters().attempts, 1u) << "the lower GUID connects";
  EXPECT_EQ(cable.end(1).core->counters().attempts, 0u);
  EXPECT_EQ(cable.end(0).core->phase(), verbs::CablePhase::connected);
  EXPECT_THAT(cable.end(0).core->reason(), IsEmpty());
  EXPECT_EQ(cable.rejections, 0u);
}

TEST(EthernetGreeting, WhoComesLateIsFoundAtOnce) {
  for (const bool lower_first : {true, false}) {
    Pair cable;
    cable.plug(lower_first ? 0 : 1);
    cable.run_for(std::chrono::seconds(60));
    const TimePoint before = cable.now();
    cable.plug(lower_first ? 1 : 0);
    cable.run_for(milliseconds(20));
    ASSERT_TRUE(cable.connected());
    EXPECT_LE(cable.end(0).up_at - before, milliseconds(8));
  }
}

TEST(EthernetGreeting, AloneItAnnouncesSeldomAndSaysSo) {
  Segment segment;
  segment.add(identity(1));
  EXPECT_EQ(segment.end(0).core->next_timer(), std::nullopt);
  segment.plug(0);
  segment.run_for(std::chrono::seconds(10));
  // 0, 20, 60, 140, 300, 620 ms, then every 500 ms
  EXPECT_EQ(segment.announcements, 24u);
  EXPECT_EQ(segment.end(0).core->phase(), verbs::CablePhase::greeting);
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("no fabricd announces itself"));
}

TEST(EthernetGreeting, ThePortsTroubleIsShownAndEndsTheConnection) {
  Pair cable;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(10));
  cable.unplug(0);
  EXPECT_THAT(cable.end(0).downs, testing::ElementsAre("event: nobody there"));
  EXPECT_EQ(cable.end(0).core->phase(), verbs::CablePhase::down);
  EXPECT_EQ(cable.end(0).core->reason(), "nobody there");
  EXPECT_EQ(cable.end(0).core->next_timer(), std::nullopt);
  cable.unplug(1);
  cable.run_for(std::chrono::seconds(1));
  const TimePoint before = cable.now();
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(20));
  ASSERT_TRUE(cable.connected());
  EXPECT_LE(cable.end(1).up_at - before, milliseconds(8));
}

TEST(EthernetGreeting, ALostNeighbourMustBeHeardAgainFirst) {
  Pair cable;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(10));
  cable.lose = 1;  // silent death
  cable.feed(0, Greeting::Lost{"heartbeat", "no answer"});
  EXPECT_THAT(cable.end(0).downs, testing::ElementsAre("heartbeat: no answer"));
  cable.run_for(std::chrono::seconds(30));
  EXPECT_EQ(cable.end(0).core->counters().attempts, 1u) << "connects into the void";
  cable.lose = 0;
  cable.run_for(milliseconds(1100));
  EXPECT_TRUE(cable.connected());
}

TEST(EthernetGreeting, ARestartOfTheNeighbourIsNoticed) {
  for (const std::size_t who : {0u, 1u}) {
    Pair cable;
    cable.plug(0);
    cable.plug(1);
    cable.run_for(milliseconds(10));
    const TimePoint before = cable.now();
    cable.restart(who, identity(who + 1, static_cast<std::uint8_t>(who), 2));
    cable.run_for(milliseconds(400));
    ASSERT_TRUE(cable.connected());
    EXPECT_EQ(cable.end(1 - who).neighbour.incarnation, 2u);
    ASSERT_EQ(cable.end(1 - who).downs.size(), 1u);
    EXPECT_THAT(cable.end(1 - who).downs[0], testing::StartsWith("peer: "));
    EXPECT_LE(cable.end(1 - who).up_at - before, milliseconds(250));
  }
}

TEST(EthernetGreeting, AStoppingDaemonTellsItsNeighbour) {
  Pair cable;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(10));
  cable.feed(1, Greeting::Stopped{});
  EXPECT_FALSE(cable.end(1).up);
  EXPECT_EQ(cable.end(1).core->next_timer(), std::nullopt);
  cable.run_for(milliseconds(2));
  EXPECT_THAT(cable.end(0).downs, testing::ElementsAre(HasSubstr("peer: ")));
  cable.run_for(std::chrono::seconds(10));
  EXPECT_EQ(cable.end(0).core->phase(), verbs::CablePhase::greeting);
  EXPECT_EQ(cable.end(0).core->counters().attempts, 1u);
  EXPECT_EQ(cable.end(0).core->neighbour(), std::nullopt);
}

TEST(EthernetGreeting, ASwitchIsRefusedByAllAndLeftAlone) {
  Segment segment;
  for (std::uint64_t guid : {1, 2, 3}) segment.add(identity(guid));
  segment.plug(0);
  segment.plug(1);
  segment.run_for(milliseconds(10));
  EXPECT_TRUE(segment.end(0).up && segment.end(1).up);
  segment.plug(2);
  segment.run_for(std::chrono::seconds(20));
  for (std::size_t i : {0u, 1u, 2u}) {
    EXPECT_FALSE(segment.end(i).up);
    EXPECT_EQ(segment.end(i).core->phase(), verbs::CablePhase::refused);
    EXPECT_THAT(segment.end(i).core->reason(), HasSubstr("a switch is in between"));
    EXPECT_LE(segment.end(i).ups, 1u);
  }
  segment.feed(1, Greeting::Stopped{});
  segment.run_for(std::chrono::seconds(1));
  EXPECT_TRUE(segment.end(0).up && segment.end(2).up) << "two are left, and one said that it leaves";
}

TEST(EthernetGreeting, WhoVanishesFromASwitchIsForgotten) {
  Segment segment;
  for (std::uint64_t guid : {1, 2, 3}) segment.add(identity(guid));
  for (std::size_t i : {0u, 1u, 2u}) segment.plug(i);
  segment.run_for(std::chrono::seconds(2));
  segment.unplug(1);
  segment.run_for(milliseconds(3000));
  EXPECT_FALSE(segment.end(0).up);
  segment.run_for(milliseconds(1500));
  EXPECT_TRUE(segment.end(0).up && segment.end(2).up);
}

TEST(EthernetGreeting, ItsOwnHostIsRefused) {
  Segment segment;
  segment.add(identity(1, 0));
  segment.add(identity(1, 1));
  segment.plug(0);
  segment.plug(1);
  segment.run_for(std::chrono::seconds(5));
  EXPECT_EQ(segment.end(0).core->phase(), verbs::CablePhase::refused);
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("port 2 of this same host"));
  EXPECT_THAT(segment.end(1).core->reason(), HasSubstr("port 1 of this same host"));
  EXPECT_EQ(segment.end(0).core->counters().attempts + segment.end(1).core->counters().attempts, 0u);
}

TEST(EthernetGreeting, AHostWithTheSameGuidIsRefused) {
  Segment segment;
  segment.add(identity(1, 0, 10));
  segment.add(identity(1, 0, 11));
  segment.plug(0);
  segment.plug(1);
  segment.run_for(std::chrono::seconds(5));
  for (std::size_t i : {0u, 1u}) {
    EXPECT_EQ(segment.end(i).core->phase(), verbs::CablePhase::refused);
    EXPECT_THAT(segment.end(i).core->reason(), HasSubstr("has the GUID of this host, 0x0000000000000001"));
  }
}

TEST(EthernetGreeting, AnotherProtocolVersionIsRefused) {
  Segment segment;
  segment.add(identity(1));
  auto newer = identity(2);
  newer.version = 9;
  segment.add(newer);
  segment.plug(0);
  segment.plug(1);
  segment.run_for(std::chrono::seconds(5));
  EXPECT_EQ(segment.end(0).core->phase(), verbs::CablePhase::refused);
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("h2 speaks version 9 to its neighbours, this one 1"));
  EXPECT_EQ(segment.end(0).core->counters().attempts, 0u);
  EXPECT_EQ(segment.end(0).core->neighbour()->name, "h2") << "shown, though not joined";
}

TEST(EthernetGreeting, AnotherMessageFormatIsRefused) {
  Segment segment;
  segment.add(identity(1));
  segment.plug(0);
  Announcement foreign;
  foreign.format = 7;
  segment.feed(0, Greeting::Heard{{0xfe, 0x80}, foreign});
  EXPECT_EQ(segment.end(0).core->phase(), verbs::CablePhase::refused);
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("in format 7"));
  EXPECT_EQ(segment.end(0).core->neighbour(), std::nullopt);
  segment.run_for(milliseconds(3600));
  EXPECT_EQ(segment.end(0).core->phase(), verbs::CablePhase::greeting) << "forgotten";
}

TEST(EthernetGreeting, LostRequestsCostOneDeadline) {
  Pair cable;
  cable.lose_requests = true;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(1000));
  EXPECT_EQ(cable.end(0).core->phase(), verbs::CablePhase::greeting);
  cable.lose_requests = false;
  cable.run_for(milliseconds(2300));
  EXPECT_TRUE(cable.connected());
  EXPECT_EQ(cable.end(0).core->counters().attempts, 2u);
  EXPECT_LE(cable.end(0).up_at.time_since_epoch(), milliseconds(3250));
}

TEST(EthernetGreeting, HalfARequestIsRejectedAfterTheDeadline) {
  Segment segment;
  segment.add(identity(2));
  segment.plug(0);
  Announcement other;
  other.identity = identity(1);
  segment.feed(0, Greeting::Heard{{0xfe, 0x80}, other});
  auto actions = segment.end(0).core->handle(
      segment.now(), Greeting::Requested{42, {Purpose::data, Guid{1}, 0, 1, 1, 5, 4096}});
  EXPECT_THAT(actions, IsEmpty());
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("connecting to h1"));
  actions = segment.end(0).core->handle(segment.now() + milliseconds(3000), Greeting::TimerExpired{});
  bool rejected = false;
  for (const auto& action : actions) {
    if (const auto* reject = std::get_if<Greeting::Reject>(&action)) rejected |= reject->request == 42;
  }
  EXPECT_TRUE(rejected);
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("has taken too long"));
  // Of a failure with somebody who is gone there is no more to say.
  segment.end(0).core->handle(segment.now() + milliseconds(7000), Greeting::TimerExpired{});
  EXPECT_THAT(segment.end(0).core->reason(), HasSubstr("no fabricd announces itself"));
}

TEST(EthernetGreeting, RequestsAreRejectedWithAReason) {
  const auto reason_for = [](const ConnectionParameters& wish, bool usable = true) {
    Greeting core(identity(5));
    if (usable) core.handle(TimePoint{}, Greeting::PortUsable{1, 4096});
    Announcement other;
    other.identity = identity(3);
    core.handle(TimePoint{}, Greeting::Heard{{0xfe, 0x80}, other});
    for (const auto& action : core.handle(TimePoint{}, Greeting::Requested{1, wish})) {
      if (const auto* reject = std::get_if<Greeting::Reject>(&action)) return reject->rejection.reason;
    }
    return std::string();
  };
  EXPECT_EQ(reason_for({Purpose::data, Guid{3}, 0, 1, 1, 5, 4096}), "");
  EXPECT_THAT(reason_for({Purpose::data, Guid{3}, 0, 1, 1, 5, 4096}, false), HasSubstr("not ready"));
  EXPECT_THAT(reason_for({Purpose::data, Guid{3}, 0, 1, 2, 5, 4096}), HasSubstr("version 1"));
  EXPECT_THAT(reason_for({Purpose::data, Guid{3}, 0, 2, 1, 5, 4096}), HasSubstr("not heard"));
  EXPECT_THAT(reason_for({Purpose::data, Guid{4}, 0, 1, 1, 5, 4096}), HasSubstr("not heard"));
}

TEST(EthernetGreeting, TheHigherGuidMayNotConnect) {
  Greeting core(identity(1));
  core.handle(TimePoint{}, Greeting::PortUsable{1, 4096});
  Announcement other;
  other.identity = identity(3);
  core.handle(TimePoint{}, Greeting::Heard{{0xfe, 0x80}, other});
  const auto actions =
      core.handle(TimePoint{}, Greeting::Requested{1, {Purpose::data, Guid{3}, 0, 1, 1, 5, 4096}});
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_THAT(std::get<Greeting::Reject>(actions[0]).rejection.reason, HasSubstr("lower host GUID"));
}

TEST(EthernetGreeting, AnotherMtuConnectsAnew) {
  Pair cable;
  cable.plug(0, 4096);
  cable.plug(1, 4096);
  cable.run_for(milliseconds(50));
  cable.plug(1, 1024);
  cable.run_for(milliseconds(50));
  ASSERT_TRUE(cable.connected());
  EXPECT_EQ(cable.end(0).path_mtu, 1024);
  EXPECT_EQ(cable.end(1).path_mtu, 1024);
  EXPECT_EQ(cable.end(0).ups, 2u);
  // Larger at one end only: nothing to gain.
  cable.plug(0, 2048);
  cable.run_for(milliseconds(1500));
  EXPECT_EQ(cable.end(0).ups, 2u);
  cable.plug(1, 2048);
  cable.run_for(milliseconds(1500));
  EXPECT_EQ(cable.end(0).ups, 3u);
  EXPECT_EQ(cable.end(1).path_mtu, 2048);
}

TEST(EthernetGreeting, AnAnswerFromSomebodyElseIsNotTaken) {
  Greeting core(identity(1));
  core.handle(TimePoint{}, Greeting::PortUsable{1, 4096});
  Announcement other;
  other.identity = identity(3);
  core.handle(TimePoint{}, Greeting::Heard{{0xfe, 0x80}, other});
  const auto actions =
      core.handle(TimePoint{}, Greeting::Replied{1, {Purpose::data, Guid{4}, 0, 1, 1, 1, 4096}});
  ASSERT_FALSE(actions.empty());
  EXPECT_THAT(std::get<Greeting::GiveUp>(actions[0]).reason, HasSubstr("another than h3"));
}

TEST(EthernetGreeting, EventsOfEarlierSessionsAreIgnored) {
  Pair cable;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(10));
  cable.feed(0, Greeting::Failed{99, "old"});
  cable.feed(0, Greeting::Connected{99});
  cable.feed(0, Greeting::RequestGone{99});
  cable.run_for(milliseconds(10));
  EXPECT_TRUE(cable.connected());
  EXPECT_EQ(cable.end(0).ups, 1u);
}

TEST(EthernetGreeting, FalseAlarmsMakeItPatientAndCalmMakesItQuickAgain) {
  Pair cable;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(10));
  EXPECT_EQ(cable.end(0).ack_timeout, Greeting::kAdapterTimeout);
  for (unsigned alarm = 1; alarm <= 10; ++alarm) {
    cable.feed(1, Greeting::Lost{"heartbeat", "retries exceeded"});
    cable.run_for(milliseconds(1500));
    ASSERT_TRUE(cable.connected());
    const unsigned expected =
        std::min<unsigned>(Greeting::kAdapterTimeout + alarm, Greeting::kLongestTimeout);
    EXPECT_EQ(cable.end(0).ack_timeout, expected) << "the longer of the two ends'";
    EXPECT_EQ(cable.end(1).ack_timeout, expected);
  }
  EXPECT_EQ(cable.end(1).core->counters().false_alarms, 10u);
  EXPECT_EQ(cable.end(0).core->counters().false_alarms, 0u);
  cable.run_for(std::chrono::minutes(11));
  cable.feed(1, Greeting::Lost{"event", "port error"});
  cable.run_for(milliseconds(1500));
  EXPECT_EQ(cable.end(1).ack_timeout, Greeting::kAdapterTimeout);
}

TEST(EthernetGreeting, RealDeathsAreNoFalseAlarms) {
  Pair cable;
  cable.plug(0);
  cable.plug(1);
  cable.run_for(milliseconds(10));
  // A link that goes down after all, a neighbour that has started anew, one that was away for long.
  cable.feed(0, Greeting::Lost{"completion", "retries exceeded"});
  cable.unplug(0);
  cable.plug(0);
  cable.run_for(milliseconds(1500));
  cable.feed(0, Greeting::Lost{"completion", "retries exceeded"});
  cable.restart(1, identity(2, 1, 2));
  cable.run_for(milliseconds(1500));
  ASSERT_TRUE(cable.connected());
  cable.lose = 1;
  cable.feed(0, Greeting::Lost{"completion", "retries exceeded"});
  cable.run_for(std::chrono::seconds(11));
  cable.lose = 0;
  cable.run_for(milliseconds(1500));
  ASSERT_TRUE(cable.connected());
  EXPECT_EQ(cable.end(0).core->counters().false_alarms, 0u);
}

/// Cables that lose a third of all messages, unplugged, restarted and reset at random: once left in peace,
/// the ends are connected to each other, in the same session.
TEST(EthernetGreeting, RandomTroubleEndsConnected) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Pair cable(seed % 2 ? 1 : 2, seed % 2 ? 2 : 1);
    cable.random.seed(seed);
    cable.lose = 0.33;
    cable.plug(0);
    cable.plug(1);
    std::uint32_t incarnation = 1;
    for (int step = 0; step < 40; ++step) {
      cable.run_for(milliseconds(cable.random() % 1500));
      const std::size_t who = cable.random() % 2;
      switch (cable.random() % 5) {
        case 0:
          cable.unplug(who);
          cable.run_for(milliseconds(cable.random() % 200));
          cable.plug(who);
          break;
        case 1:
          cable.restart(who, identity(who == (seed % 2 ? 0 : 1) ? 1 : 2, static_cast<std::uint8_t>(who),
                                      ++incarnation));
          break;
        case 2:
          cable.feed(who, Greeting::Lost{"completion", "retries exceeded"});
          break;
        case 3:
          cable.plug(who, cable.random() % 2 ? 1024 : 4096);
          break;
        default:
          break;
      }
    }
    cable.lose = 0;
    cable.run_for(std::chrono::seconds(10));
    ASSERT_TRUE(cable.connected());
    EXPECT_EQ(cable.end(0).attempt, cable.end(1).attempt);
    EXPECT_EQ(cable.end(0).path_mtu, cable.end(1).path_mtu);
    EXPECT_EQ(cable.end(0).ups, cable.end(0).downs.size() + 1);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace fabric::daemon
