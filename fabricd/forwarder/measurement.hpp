// What can be measured over the fabric, between any two hosts, in perftest's terms: ping, trace, latency and
// bandwidth. Requests and results are values; the data thread plays them (data_thread.hpp), and answers those
// of other hosts.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "words/words.hpp"

namespace fabric::daemon {

enum class MeasurementKind : std::uint8_t {
  ping,     ///< `iterations` echoes, `interval` apart; each answer is reported
  trace,    ///< an echo for each hop limit from 1 up, until the destination answers; each answer is reported
  latency,  ///< `iterations` echoes one after the other
  bandwidth,  ///< frames at full rate, counted by the destination
};

struct MeasurementRequest {
  MeasurementKind kind = MeasurementKind::ping;
  HostIndex destination;
  std::optional<unsigned> way;  ///< nothing: the way that traffic takes now
  std::uint32_t size = 64;      ///< payload bytes of a frame, raised to kMinimumSize, at most kMaximumSize
  std::uint64_t iterations =
      1000;  ///< frames. bandwidth: ignored where a duration is given; latency: at most kMaximumSamples
  std::chrono::nanoseconds duration{0};                        ///< bandwidth, latency: 0 for `iterations`
  std::chrono::nanoseconds interval{std::chrono::seconds(1)};  ///< ping
  std::chrono::nanoseconds timeout{std::chrono::milliseconds(1000)};  ///< wait for one answer

  static constexpr std::uint32_t kMinimumSize = 40;  ///< what an echo needs to carry (Echo::kSize)
  static constexpr std::uint32_t kMaximumSize = 65536;
  static constexpr std::uint64_t kMaximumSamples = 1'000'000;
};

/// One answered, or lost, echo.
struct EchoReply {
  std::uint64_t sequence = 0;  ///< from 0; trace: hop limit - 1
  bool answered = false;
  bool at_destination = false;  ///< else a relay where the hop limit ended
  HostIndex from;               ///< who answered
  PortIndex ingress = kNoPort;  ///< the port of `from` that the echo came in by
  bool turned = false;          ///< the echo, or its answer, met a dead cable and went the other way
  std::uint8_t hops = 0;        ///< cables that the echo crossed
  std::chrono::nanoseconds round_trip{0};
};

/// perftest's columns; times in microseconds, each half of a round trip.
struct LatencyStatistics {
  std::uint64_t samples = 0;
  double t_min = 0, t_max = 0, t_typical = 0, t_avg = 0, t_stdev = 0, percentile_99 = 0, percentile_999 = 0;
};

struct BandwidthResult {
  std::uint64_t sent_frames = 0, sent_bytes = 0;          ///< bytes: payload
  std::uint64_t received_frames = 0, received_bytes = 0;  ///< as the destination counted them
  std::chrono::nanoseconds elapsed{0};                    ///< first to last frame, at the destination
  double peak = 0;          ///< bytes/s, best tenth of a second or more (the average where it took less)
  double average = 0;       ///< bytes/s
  double message_rate = 0;  ///< frames/s
};

struct MeasurementResult {
  std::string error;  ///< empty where it was carried out
  MeasurementKind kind = MeasurementKind::ping;
  HostIndex destination;
  unsigned way = 0;
  std::uint32_t size = 0;        ///< payload bytes of each frame that really travelled
  std::uint64_t iterations = 0;  ///< frames sent
  std::uint64_t lost = 0;        ///< echoes without an answer in time
  LatencyStatistics latency;     ///< ping, latency
  BandwidthResult bandwidth;     ///< bandwidth
};

/// Statistics over round trips, in nanoseconds; the samples are sorted in place. As perftest computes them:
/// the typical time is the median, a percentile p is the sample at ceil(n * p) - 1 of the sorted ones, the
/// deviation that of the population.
LatencyStatistics latency_statistics(std::span<std::uint64_t> round_trips);

}  // namespace fabric::daemon
