// Results in perftest's columns, so that scripts which read ib_send_bw and ib_send_lat read these too.
#pragma once

#include <cstdint>
#include <string>

namespace fabric::tools {

/// The line of dashes around perftest's results.
std::string perftest_rule();

/// perftest's heading, without its line feed. MB is 2^20 bytes; with `gigabits`, 10^9 bits.
std::string bandwidth_heading(bool gigabits);
struct BandwidthRow {
  std::uint64_t bytes = 0, iterations = 0;
  double peak = 0, average = 0;  ///< bytes/s
  double messages = 0;           ///< 1/s
};
std::string bandwidth_row(const BandwidthRow& row, bool gigabits);

std::string latency_heading();
struct LatencyRow {  ///< microseconds, each half of a round trip
  std::uint64_t bytes = 0, iterations = 0;
  double t_min = 0, t_max = 0, t_typical = 0, t_avg = 0, t_stdev = 0, percentile_99 = 0, percentile_999 = 0;
};
std::string latency_row(const LatencyRow& row);

}  // namespace fabric::tools
