// The other end of fabricd's control socket.
#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <stdexcept>
#include <string>

namespace fabric::tools {

/// Nobody to ask, or not any more: exit status 3, and a sentence that says what to do.
class NoDaemon : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
/// The daemon says that it cannot be done, or says nothing: exit status 1.
class Failed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// $FABRICD_SOCKET, or where fabricd listens by default.
std::string default_socket();

class Client {
 public:
  /// Throws NoDaemon.
  explicit Client(const std::string& socket);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  /// Asks and returns the last line of the answer; each line before it goes to `more`. `patience`: how long
  /// the daemon may be silent, in seconds, 0 for ever. Throws Failed and NoDaemon.
  /// `object` may be followed by a verb: "gateway handover"; it is "show" otherwise.
  boost::json::object ask(const std::string& object, const boost::json::object& args, unsigned patience,
                          const std::function<void(const boost::json::object&)>& more = {});

 private:
  std::string read_line();

  std::string socket_;
  int descriptor_;
  std::string buffer_;
};

}  // namespace fabric::tools
