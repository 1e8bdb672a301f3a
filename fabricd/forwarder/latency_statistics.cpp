#include <algorithm>
#include <cmath>

#include "fabricd/forwarder/measurement.hpp"

namespace fabric::daemon {

LatencyStatistics latency_statistics(std::span<std::uint64_t> round_trips) {
  LatencyStatistics result;
  const std::size_t n = round_trips.size();
  result.samples = n;
  if (n == 0) return result;
  std::sort(round_trips.begin(), round_trips.end());
  const auto half_usec = [&](std::size_t i) { return static_cast<double>(round_trips[i]) / 2000.0; };
  const auto percentile = [&](double p) {
    const auto rank = static_cast<std::size_t>(std::ceil(static_cast<double>(n) * p));
    return half_usec(std::clamp<std::size_t>(rank, 1, n) - 1);
  };
  result.t_min = half_usec(0);
  result.t_max = half_usec(n - 1);
  result.t_typical = n % 2 != 0 ? half_usec(n / 2) : (half_usec(n / 2 - 1) + half_usec(n / 2)) / 2;
  double sum = 0, squares = 0;
  for (std::size_t i = 0; i < n; ++i) sum += half_usec(i);
  result.t_avg = sum / static_cast<double>(n);
  for (std::size_t i = 0; i < n; ++i)
    squares += (half_usec(i) - result.t_avg) * (half_usec(i) - result.t_avg);
  result.t_stdev = std::sqrt(squares / static_cast<double>(n));
  result.percentile_99 = percentile(0.99);
  result.percentile_999 = percentile(0.999);
  return result;
}

}  // namespace fabric::daemon
