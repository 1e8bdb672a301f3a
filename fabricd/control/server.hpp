// The control socket: a unix stream socket on which fabricctl asks (request.hpp has the language).
//
// Each client is a coroutine on the control thread. A client that sends garbage gets an error line; one that
// sends a line without end is closed; one that does not read stops only its own coroutine; there are at most
// kMaximumClients. A request ends when its client has gone.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <functional>
#include <memory>
#include <string>

#include "fabricd/control/request.hpp"

namespace fabric::daemon {

class ControlServer {
 public:
  using Socket = boost::asio::local::stream_protocol::socket;

  /// Where a handler puts the lines before the last.
  class Lines {
   public:
    explicit Lines(Socket& socket) : socket_(socket) {}
    boost::asio::awaitable<void> send(boost::json::object body);

   private:
    Socket& socket_;
  };
  /// Does a request and returns the last line of the answer. What it throws becomes an error line. It is
  /// cancelled where it waits when the client has gone.
  using Handler = std::function<boost::asio::awaitable<boost::json::object>(Request request, Lines& lines)>;

  static constexpr unsigned kMaximumClients = 128;

  /// Listens at `path`, mode 0660; makes its directory. A socket left by a daemon that was killed is
  /// replaced; one that answers is another fabricd's. Throws std::runtime_error with a sentence.
  ControlServer(boost::asio::io_context& io, std::string path, Handler handler);
  /// Removes the socket.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

 private:
  boost::asio::awaitable<void> accept();
  boost::asio::awaitable<void> serve(Socket socket);

  boost::asio::io_context& io_;
  std::string path_;
  Handler handler_;
  boost::asio::local::stream_protocol::acceptor acceptor_;
  std::shared_ptr<unsigned> clients_ = std::make_shared<unsigned>(0);
};

}  // namespace fabric::daemon
