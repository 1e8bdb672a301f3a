// What the control socket answers: each object as JSON. docs/fabricctl.md has the fields.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <memory>
#include <string>

#include "fabricd/control/event_log.hpp"
#include "fabricd/control/request.hpp"
#include "fabricd/control/server.hpp"
#include "routing/node.hpp"

namespace fabric::daemon {

class Host;

class Answers {
 public:
  Answers(boost::asio::io_context& io, const EventLog& events);

  /// Null before there is an adapter, and when the daemon stops.
  void set_host(Host* host) { *host_ = host; }
  /// There is a new event.
  void wake_monitors() { news_.cancel(); }

  /// The last line of the answer; the ones before go to `lines`. Throws RequestError.
  boost::asio::awaitable<boost::json::object> answer(Request request, ControlServer::Lines& lines);

 private:
  /// The host, or a RequestError where there is none yet.
  [[nodiscard]] Host& host() const;

  [[nodiscard]] boost::json::object status() const;
  [[nodiscard]] boost::json::object log(const Request& request) const;
  [[nodiscard]] boost::json::object drain(const Request& request, bool drained) const;
  boost::asio::awaitable<boost::json::object> doctor(const Request& request);
  boost::asio::awaitable<boost::json::object> monitor(ControlServer::Lines& lines);
  boost::asio::awaitable<boost::json::object> measure(const Request& request, ControlServer::Lines& lines);

  boost::asio::io_context& io_;
  const EventLog& events_;
  boost::asio::steady_timer news_;  ///< never expires; cancelled to wake who waits for events
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::shared_ptr<Host*> host_ = std::make_shared<Host*>(nullptr);
};

}  // namespace fabric::daemon
