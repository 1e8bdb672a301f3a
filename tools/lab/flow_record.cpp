#include "tools/lab/flow_record.hpp"

#include <algorithm>
#include <cmath>

namespace fabric::tools::lab {

FlowResult evaluate(const FlowRecord& record, Nanoseconds interval) {
  FlowResult result;
  result.sent = record.sent.size();
  std::vector<bool> seen(record.sent.size());
  std::uint32_t next = 0;  // one above the highest sequence number so far
  Nanoseconds before{};
  for (std::size_t i = 0; i < record.arrivals.size(); ++i) {
    const auto [sequence, at] = record.arrivals[i];
    if (sequence >= seen.size()) continue;  // not of this record
    if (i > 0 && next < record.sent.size())
      result.longest_gap =
          std::max(result.longest_gap, std::min(at - before, at - record.sent[next] + interval));
    before = at;
    if (seen[sequence]) {
      ++result.duplicated;
      continue;
    }
    seen[sequence] = true;
    if (sequence < next) ++result.reordered;
    next = std::max(next, sequence + 1);
  }
  result.lost = static_cast<std::uint64_t>(std::count(seen.begin(), seen.end(), false));
  return result;
}

double percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(values.size())));
  return values[std::clamp<std::size_t>(rank, 1, values.size()) - 1];
}

}  // namespace fabric::tools::lab
