// Measurements: perftest's statistics, the echo codec, and the player between two hosts over a wire made of a
// queue, on a simulated clock.
#include "fabricd/forwarder/measurement.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>

#include "fabricd/forwarder/echo.hpp"
#include "fabricd/forwarder/measurement_player.hpp"
#include "routing/forwarding_state.hpp"

namespace fabric::daemon {
namespace {

using namespace std::chrono_literals;
using routing::FrameClass;
using routing::FrameHeader;

TEST(LatencyStatistics, IsHalfTheRoundTripInMicroseconds) {
  std::vector<std::uint64_t> round_trips;
  for (std::uint64_t i = 1000; i >= 1; --i) round_trips.push_back(i * 2000);  // 1 to 1000 us one way
  const LatencyStatistics result = latency_statistics(round_trips);
  EXPECT_EQ(result.samples, 1000u);
  EXPECT_DOUBLE_EQ(result.t_min, 1);
  EXPECT_DOUBLE_EQ(result.t_max, 1000);
  EXPECT_DOUBLE_EQ(result.t_typical, 500.5);
  EXPECT_DOUBLE_EQ(result.t_avg, 500.5);
  EXPECT_NEAR(result.t_stdev, 288.675, 0.001) << "sqrt((1000^2 - 1) / 12)";
  EXPECT_DOUBLE_EQ(result.percentile_99, 990);
  EXPECT_DOUBLE_EQ(result.percentile_999, 999);
}

TEST(LatencyStatistics, OfOneAndOfNone) {
  std::vector<std::uint64_t> one{3000};
  const LatencyStatistics result = latency_statistics(one);
  EXPECT_DOUBLE_EQ(result.t_typical, 1.5);
  EXPECT_DOUBLE_EQ(result.percentile_999, 1.5);
  EXPECT_DOUBLE_EQ(result.t_stdev, 0);
  EXPECT_EQ(latency_statistics({}).samples, 0u);
}

TEST(Echo, RoundTripOfEveryField) {
  Echo echo;
  echo.operation = Echo::Operation::report;
  echo.hop_limit_start = 9;
  echo.hop_limit_end = 7;
  echo.flags = Echo::kTurned;
  echo.reply_way = 1;
  echo.ingress = 3;
  echo.from = 0x1234;
  echo.session = 0xDEADBEEF;
  echo.sequence = 0x0102030405060708;
  echo.asked = 42;
  echo.answered = 43;
  echo.report = {1, 2, 3, 4};
  std::array<std::byte, Echo::kReportSize> bytes{};
  echo.encode(bytes);
  EXPECT_EQ(bytes[8], std::byte{0xDE}) << "network byte order";
  const auto decoded = Echo::decode(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->operation, echo.operation);
  EXPECT_EQ(decoded->hop_limit_start, 9);
  EXPECT_EQ(decoded->hop_limit_end, 7);
  EXPECT_EQ(decoded->flags, Echo::kTurned);
  EXPECT_EQ(decoded->reply_way, 1);
  EXPECT_EQ(decoded->ingress, 3);
  EXPECT_EQ(decoded->from, 0x1234);
  EXPECT_EQ(decoded->session, 0xDEADBEEF);
  EXPECT_EQ(decoded->sequence, echo.sequence);
  EXPECT_EQ(decoded->asked, 42u);
  EXPECT_EQ(decoded->answered, 43u);
  EXPECT_EQ(decoded->report.peak, 4u);
  EXPECT_FALSE(Echo::decode(std::span(bytes).first(Echo::kReportSize - 1))) << "a report is longer";
  bytes[0] = std::byte{9};
  EXPECT_FALSE(Echo::decode(bytes));
}

/// Hosts 1 to 4 in a chain, each with a player; a frame takes 10 us a cable. Host 5 is on no map.
class Wire {
 public:
  static constexpr Duration kCable = 10us;

  struct Host final : Outlet {
    Host(Wire& wire, std::uint16_t index) : wire(wire), index(index), player(*this, counters) {}
    Wire& wire;
    HostIndex index;
    HostCounters counters;
    MeasurementPlayer player;
    std::vector<EchoReply> replies;

    [[nodiscard]] TimePoint now() const override { return wire.now; }
    [[nodiscard]] HostIndex self() const override { return index; }
    [[nodiscard]] std::optional<unsigned> way_to(HostIndex host) const override {
      if (host.value() > 4) return std::nullopt;
      return 1;
    }
    Slot take_local() override {
      if (wire.buffers == 0) return kNoSlot;
      --wire.buffers;
      wire.slots[wire.next_slot].assign(70'000, std::byte{0xEE});
      return wire.next_slot++;
    }
    void give(Slot slot) override {
      ASSERT_EQ(wire.slots.erase(slot), 1u) << "given back twice";
      ++wire.buffers;
    }
    [[nodiscard]] std::span<std::byte> payload(Slot slot) override { return wire.slots.at(slot); }
    void clear_payload(Slot slot, std::uint32_t used, std::uint32_t size) override {
      auto& bytes = wire.slots.at(slot);
      std::fill(bytes.begin() + used, bytes.begin() + std::max(used, size), std::byte{0});
    }
    bool send(Slot slot, const Frame& frame) override {
      FrameHeader header;
      header.kind = frame.kind;
      header.hop_limit = frame.hop_limit;
      header.flags = frame.flags;
      header.destination = routing::lid_of(frame.destination, frame.way);
      header.source = routing::lid_of(index, 0);
      if (wire.lose && wire.lose(header)) {
        give(slot);
        return true;
      }
      ++wire.flying;
      wire.hop(slot, frame.payload, header, index.value());
      return true;
    }
    [[nodiscard]] bool crowded(HostIndex, unsigned) const override { return wire.flying >= 8; }
    void report(std::uint32_t, const EchoReply& reply) override { replies.push_back(reply); }
    void finished(Measurement& measurement) override { measurement.done = true; }
  };

  Wire() {
    for (std::uint16_t i = 1; i <= 4; ++i) hosts.push_back(std::make_unique<Host>(*this, i));
  }
  Host& host(unsigned i) { return *hosts[i - 1]; }

  /// One cable further from host `at`, and so on.
  void hop(Slot slot, std::uint32_t payload, FrameHeader header, unsigned at) {
    const unsigned to = routing::host_of(header.destination).value();
    const unsigned next = to > at ? at + 1 : at - 1;
    events.push_back({now + kCable, [=, this] {
                        Host& here = host(next);
                        const PortIndex ingress(to > at ? 0 : 1);
                        if (next == to) {
                          --flying;
                          if (header.kind == FrameClass::stream) {
                            here.player.count_stream(here.payload(slot).first(payload), header);
                            here.give(slot);
                          } else {
                            here.player.take_echo(slot, payload, header, ingress);
                          }
                        } else if (header.hop_limit == 1) {
                          --flying;
                          here.player.answer_hop_limit(slot, payload, header, ingress);
                        } else {
                          FrameHeader onwards = header;
                          --onwards.hop_limit;
                          hop(slot, payload, onwards, next);
                        }
                      }});
  }

  MeasurementResult measure(unsigned from, MeasurementRequest request) {
    Measurement measurement;
    measurement.session = 77;
    measurement.request = request;
    measurement.round_trips.reserve(1000);
    host(from).player.begin(measurement);
    for (int steps = 0; !measurement.done && steps < 1'000'000; ++steps) {
      host(from).player.run();
      if (measurement.done) break;
      // To the next thing that happens.
      TimePoint next = host(from).player.next_timer().value_or(TimePoint::max());
      if (!events.empty()) next = std::min(next, events.front().first);
      now = std::max(now, next);
      if (!events.empty() && events.front().first <= now) {
        const auto event = std::move(events.front().second);
        events.pop_front();
        event();
      }
    }
    EXPECT_TRUE(measurement.done);
    measurement.result.latency = latency_statistics(measurement.round_trips);
    return measurement.result;
  }

  TimePoint now{1s};
  std::deque<std::pair<TimePoint, std::function<void()>>> events;  // all delays are the same: in order
  std::map<Slot, std::vector<std::byte>> slots;
  Slot next_slot = 0;
  unsigned buffers = 64, flying = 0;
  std::function<bool(const FrameHeader&)> lose;
  std::vector<std::unique_ptr<Host>> hosts;
};

MeasurementRequest request(MeasurementKind kind, unsigned destination, std::uint64_t iterations) {
  MeasurementRequest request;
  request.kind = kind;
  request.destination = HostIndex(static_cast<std::uint16_t>(destination));
  request.iterations = iterations;
  return request;
}

TEST(Ping, ReportsEachAnswerAndKeepsItsInterval) {
  Wire wire;
  const TimePoint begin = wire.now;
  const auto result = wire.measure(1, request(MeasurementKind::ping, 3, 4));
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(result.iterations, 4u);
  EXPECT_EQ(result.lost, 0u);
  EXPECT_DOUBLE_EQ(result.latency.t_typical, 20) << "two cables of 10 us one way";
  EXPECT_EQ(wire.now - begin, 3s + 40us);
  const auto& replies = wire.host(1).replies;
  ASSERT_EQ(replies.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(replies[i].sequence, i);
    EXPECT_TRUE(replies[i].answered);
    EXPECT_TRUE(replies[i].at_destination);
    EXPECT_EQ(replies[i].from, HostIndex(3));
    EXPECT_EQ(replies[i].hops, 2);
    EXPECT_EQ(replies[i].ingress, PortIndex(0));
    EXPECT_EQ(replies[i].round_trip, 40us);
  }
  EXPECT_EQ(wire.host(3).counters[HostCounter::echo_answered].get(), 4u);
  EXPECT_EQ(wire.slots.size(), 0u) << "every buffer is back";
}

TEST(Ping, CountsALostAnswerAfterItsTime) {
  Wire wire;
  int frames = 0;
  wire.lose = [&](const FrameHeader&) { return ++frames == 2; };  // the first answer
  const auto result = wire.measure(1, request(MeasurementKind::ping, 2, 3));
  EXPECT_EQ(result.lost, 1u);
  ASSERT_EQ(wire.host(1).replies.size(), 3u);
  EXPECT_FALSE(wire.host(1).replies[0].answered);
  EXPECT_TRUE(wire.host(1).replies[1].answered);
  EXPECT_EQ(wire.slots.size(), 0u);
}

TEST(Ping, SaysWhyItCannot) {
  Wire wire;
  EXPECT_NE(wire.measure(1, request(MeasurementKind::ping, 5, 1)).error, "");
  EXPECT_NE(wire.measure(1, request(MeasurementKind::ping, 1, 1)).error, "");
}

TEST(Trace, NamesEveryHopAndStopsAtTheDestination) {
  Wire wire;
  const auto result = wire.measure(1, request(MeasurementKind::trace, 4, 30));
  EXPECT_EQ(result.iterations, 3u);
  const auto& replies = wire.host(1).replies;
  ASSERT_EQ(replies.size(), 3u);
  for (unsigned i = 0; i < 3; ++i) {
    EXPECT_EQ(replies[i].from, HostIndex(static_cast<std::uint16_t>(i + 2)));
    EXPECT_EQ(replies[i].at_destination, i == 2);
    EXPECT_EQ(replies[i].hops, i + 1);
    EXPECT_EQ(replies[i].round_trip, 20us * (i + 1));
  }
}

TEST(Trace, GivesUpAfterThreeSilentHops) {
  Wire wire;
  wire.lose = [](const FrameHeader&) { return true; };
  const auto result = wire.measure(1, request(MeasurementKind::trace, 4, 30));
  EXPECT_EQ(result.iterations, 3u);
  EXPECT_EQ(result.lost, 3u);
}

TEST(Latency, AsksAgainAtOnce) {
  Wire wire;
  const TimePoint begin = wire.now;
  const auto result = wire.measure(2, request(MeasurementKind::latency, 4, 100));
  EXPECT_EQ(result.latency.samples, 100u);
  EXPECT_DOUBLE_EQ(result.latency.t_avg, 20);
  EXPECT_EQ(wire.now - begin, 100 * 40us);
  EXPECT_EQ(wire.host(2).replies.size(), 0u) << "nobody wants to see them one by one";
}

TEST(Bandwidth, IsWhatTheDestinationCounted) {
  Wire wire;
  auto wanted = request(MeasurementKind::bandwidth, 3, 500);
  wanted.size = 1000;
  const auto result = wire.measure(1, wanted);
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(result.bandwidth.sent_frames, 500u);
  EXPECT_EQ(result.bandwidth.received_frames, 500u);
  EXPECT_EQ(result.bandwidth.received_bytes, 500'000u);
  EXPECT_EQ(result.lost, 0u);
  EXPECT_GT(result.bandwidth.elapsed, 0ns);
  EXPECT_EQ(wire.host(3).counters[HostCounter::stream_bytes].get(), 500'000u);
  EXPECT_EQ(wire.slots.size(), 0u);
}

TEST(Bandwidth, TellsSentFromReceived) {
  Wire wire;
  int frames = 0;
  wire.lose = [&](const FrameHeader& header) {
    return header.kind == FrameClass::stream && ++frames % 10 == 0;
  };
  const auto result = wire.measure(1, request(MeasurementKind::bandwidth, 2, 100));
  EXPECT_EQ(result.bandwidth.sent_frames, 100u);
  EXPECT_EQ(result.bandwidth.received_frames, 90u);
  EXPECT_EQ(result.lost, 10u);
}

TEST(Bandwidth, RunsForItsDuration) {
  Wire wire;
  auto wanted = request(MeasurementKind::bandwidth, 2, 0);
  wanted.duration = 20ms;
  const TimePoint begin = wire.now;
  const auto result = wire.measure(1, wanted);
  EXPECT_GE(wire.now - begin, 20ms);
  EXPECT_LT(wire.now - begin, 50ms);
  EXPECT_EQ(result.bandwidth.received_frames, result.bandwidth.sent_frames);
}

TEST(Player, AnswersOnlyWhatItUnderstands) {
  Wire wire;
  auto& host = wire.host(2);
  const Slot slot = host.take_local();
  FrameHeader header;
  header.kind = FrameClass::echo;
  header.source = routing::lid_of(HostIndex(1), 0);
  host.player.take_echo(slot, 64, header, PortIndex(0));  // 0xEE all over
  EXPECT_EQ(host.counters[HostCounter::drop_malformed].get(), 1u);
  EXPECT_EQ(wire.slots.size(), 0u);

  const Slot answer = host.take_local();
  Echo echo;
  echo.operation = Echo::Operation::reply;
  echo.session = 12345;
  echo.encode(host.payload(answer));
  host.player.take_echo(answer, Echo::kSize, header, PortIndex(0));
  EXPECT_EQ(host.counters[HostCounter::drop_no_session].get(), 1u);
  EXPECT_EQ(wire.slots.size(), 0u);
}

}  // namespace
}  // namespace fabric::daemon
