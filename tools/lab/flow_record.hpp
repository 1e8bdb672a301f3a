// What became of the packets of one flow: lost, duplicated, reordered, and the longest gap between arrivals.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace fabric::tools::lab {

using Nanoseconds = std::chrono::nanoseconds;

struct FlowRecord {
  struct Arrival {
    std::uint32_t sequence;
    Nanoseconds at;  ///< of the same clock as `sent`
  };
  std::vector<Nanoseconds> sent;  ///< by sequence number, from 0
  std::vector<Arrival> arrivals;  ///< in the order in which they came
};

struct FlowResult {
  std::uint64_t sent = 0;
  std::uint64_t lost = 0;        ///< never arrived
  std::uint64_t duplicated = 0;  ///< arrivals beyond the first of a packet
  std::uint64_t reordered = 0;   ///< first arrivals after one with a higher sequence number (RFC 4737, 3.3)
  Nanoseconds longest_gap{};
};

/// `interval` is the sender's intended spacing. The gap before an arrival is the time since the one before;
/// where the sender itself paused, its pause does not count: it is the time since the next packet was sent,
/// plus the interval, if that is less.
FlowResult evaluate(const FlowRecord& record, Nanoseconds interval);

/// The smallest value that at least `fraction` (0..1] of the values do not exceed; 0 of an empty list.
double percentile(std::vector<double> values, double fraction);

}  // namespace fabric::tools::lab
