#include "tools/fabricctl/perftest.hpp"

#include <fmt/format.h>

namespace fabric::tools {

std::string perftest_rule() {
  return std::string(87, '-');
}

std::string bandwidth_heading(bool gigabits) {
  const char* unit = gigabits ? "Gb" : "MB";
  return fmt::format(" #bytes     #iterations    BW peak[{0}/sec]    BW average[{0}/sec]   MsgRate[Mpps]",
                     unit);
}

std::string bandwidth_row(const BandwidthRow& row, bool gigabits) {
  const double scale = gigabits ? 8 / 1e9 : 1.0 / (1 << 20);
  return fmt::format(" {:<7}    {:<10}       {:<7.2f}            {:<7.2f}\t\t   {:<7.6f}", row.bytes,
                     row.iterations, row.peak * scale, row.average * scale, row.messages / 1e6);
}

std::string latency_heading() {
  return " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec] "
         "  99% "
         "percentile[usec]   99.9% percentile[usec] ";
}

std::string latency_row(const LatencyRow& row) {
  return fmt::format(
      " {:<7} {}          {:<7.2f}        {:<7.2f}      {:<7.2f}  \t       {:<7.2f}     "
      "\t{:<7.2f}\t\t{:<7.2f} "
      "\t\t{:<7.2f}",
      row.bytes, row.iterations, row.t_min, row.t_max, row.t_typical, row.t_avg, row.t_stdev,
      row.percentile_99, row.percentile_999);
}

}  // namespace fabric::tools
