#include "fabricd/control/event_log.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

namespace fabric::daemon {

std::string_view to_string(EventLevel level) {
  switch (level) {
    case EventLevel::info:
      return "info";
    case EventLevel::warning:
      return "warning";
    case EventLevel::error:
      return "error";
  }
  return "unknown";
}

const LoggedEvent& EventLog::add(std::chrono::system_clock::time_point time, EventLevel level,
                                 std::string kind, std::string text, boost::json::object facts) {
  if (events_.size() == capacity_) events_.pop_front();
  return events_.emplace_back(
      LoggedEvent{next_++, time, level, std::move(kind), std::move(text), std::move(facts)});
}

const LoggedEvent* EventLog::from(std::uint64_t number) const {
  if (number >= next_ || events_.empty()) return nullptr;
  const std::uint64_t first = events_.front().number;
  return &events_[number <= first ? 0 : number - first];
}

boost::json::object to_json(const LoggedEvent& event) {
  // RFC 3339 with microseconds, in UTC: sortable, and comparable between hosts.
  const auto microseconds = std::chrono::time_point_cast<std::chrono::microseconds>(event.time);
  const auto seconds = std::chrono::floor<std::chrono::seconds>(microseconds);
  const std::string time =
      fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06}Z", fmt::gmtime(seconds), (microseconds - seconds).count());
  return {{"number", event.number}, {"time", time},       {"level", std::string(to_string(event.level))},
          {"kind", event.kind},     {"text", event.text}, {"facts", event.facts}};
}

}  // namespace fabric::daemon
