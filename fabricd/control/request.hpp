// The language of the control socket: one JSON object a line.
//
//   request   {"object":"path","verb":"show","args":{"from":"h1","to":"h3"}}
//   answer    one line or more. Each has "schema":1; all but the last have "more":true; one that says that
//   the
//             request could not be done has "error": a sentence.
//
// A connection may be used for any number of requests, one after the other.
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fabric::daemon {

inline constexpr int kSchema = 1;                        ///< of all answers
inline constexpr std::size_t kMaximumRequest = 1 << 16;  ///< bytes of a line

/// A request that cannot be done: a sentence that says what to do instead.
class RequestError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Request {
  std::string object;
  std::string verb = "show";
  boost::json::object args;

  /// @name Arguments. They throw RequestError where one is of the wrong type or out of range.
  /// @{
  [[nodiscard]] std::optional<std::string> text(std::string_view name) const;
  [[nodiscard]] std::optional<std::uint64_t> number(std::string_view name, std::uint64_t low,
                                                    std::uint64_t high) const;
  [[nodiscard]] bool flag(std::string_view name) const;
  /// Throws RequestError if there is an argument that is not one of these.
  void only(std::initializer_list<std::string_view> names) const;
  /// @}
};

/// Throws RequestError.
Request parse_request(std::string_view line);

/// `body` with the schema in front, as a line.
std::string encode_answer(boost::json::object body, bool more);
std::string encode_error(std::string_view sentence);

}  // namespace fabric::daemon
