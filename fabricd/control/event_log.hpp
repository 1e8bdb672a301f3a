// What has happened lately: a ring of numbered events, for `fabricctl log` and `fabricctl monitor`.
//
// A reader keeps the number of the event that it wants next, so that a slow one costs nothing: what has left
// the ring before it was read is a gap in the numbers.
#pragma once

#include <boost/json/object.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <string>

namespace fabric::daemon {

enum class EventLevel : std::uint8_t { info, warning, error };
std::string_view to_string(EventLevel level);

struct LoggedEvent {
  std::uint64_t number = 0;  ///< from 1, +1 each
  std::chrono::system_clock::time_point time;
  EventLevel level = EventLevel::info;
  std::string kind;           ///< stable word: "cable-up", "host-gone", ...; docs/fabricctl.md has the list
  std::string text;           ///< for people
  boost::json::object facts;  ///< for programs; what they are depends on the kind
};

class EventLog {
 public:
  explicit EventLog(std::size_t capacity) : capacity_(capacity) {}

  const LoggedEvent& add(std::chrono::system_clock::time_point time, EventLevel level, std::string kind,
                         std::string text, boost::json::object facts = {});

  /// The first event with this number or a later one; null where there is none yet.
  [[nodiscard]] const LoggedEvent* from(std::uint64_t number) const;
  /// The number that the next event will have.
  [[nodiscard]] std::uint64_t next_number() const { return next_; }
  /// The number of the oldest event kept (next_number() where there is none).
  [[nodiscard]] std::uint64_t first_number() const {
    return events_.empty() ? next_ : events_.front().number;
  }

 private:
  std::size_t capacity_;
  std::uint64_t next_ = 1;
  std::deque<LoggedEvent> events_;
};

boost::json::object to_json(const LoggedEvent& event);

}  // namespace fabric::daemon
