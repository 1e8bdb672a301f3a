#include "fabricd/control/server.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cstring>
#include <filesystem>

namespace fabric::daemon {

namespace asio = boost::asio;
using asio::use_awaitable;
using asio::local::stream_protocol;

namespace {

/// Throws where another daemon listens at `path`; removes what a killed one left.
void clear_the_way(asio::io_context& io, const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::symlink_status(path, error);
  if (!std::filesystem::exists(status)) return;
  if (!std::filesystem::is_socket(status)) {
    throw std::runtime_error(fmt::format("{} exists and is not a socket; give another with --socket", path));
  }
  ControlServer::Socket probe(io);
  boost::system::error_code refused;
  probe.connect(stream_protocol::endpoint(path), refused);
  if (!refused) {
    throw std::runtime_error(
        fmt::format("another fabricd answers at {}; stop it, or give another socket with --socket", path));
  }
  std::filesystem::remove(path, error);
}

stream_protocol::acceptor listen(asio::io_context& io, const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    throw std::runtime_error(fmt::format("the socket's path {} is too long; the system allows {} bytes", path,
                                         sizeof(sockaddr_un::sun_path) - 1));
  }
  try {
    const auto directory = std::filesystem::path(path).parent_path();
    if (!directory.empty()) std::filesystem::create_directories(directory);
    clear_the_way(io, path);
    stream_protocol::acceptor acceptor(io, stream_protocol::endpoint(path));
    if (chmod(path.c_str(), 0660) != 0) throw std::system_error(errno, std::generic_category());
    return acceptor;
  } catch (const std::system_error& error) {
    throw std::runtime_error(fmt::format("cannot listen at {}: {}; give another socket with --socket", path,
                                         error.code().message()));
  }
}

/// Reads what else comes until the client is gone. What it sends meanwhile are its next requests.
asio::awaitable<void> gone(ControlServer::Socket& socket, std::string& buffer) {
  while (buffer.size() < kMaximumRequest) {
    std::array<char, 4096> part;
    const auto [error, size] =
        co_await socket.async_read_some(asio::buffer(part), asio::as_tuple(use_awaitable));
    if (error) co_return;
    buffer.append(part.data(), size);
  }
}

asio::awaitable<void> write_line(ControlServer::Socket& socket, std::string line) {
  co_await asio::async_write(socket, asio::buffer(line), use_awaitable);
}

/// The last line of the answer, whatever the handler does.
asio::awaitable<std::string> answer(const ControlServer::Handler& handler, std::string_view text,
                                    ControlServer::Lines& lines) {
  std::string sentence;
  try {
    Request request = parse_request(text);
    boost::json::object body = co_await handler(std::move(request), lines);
    co_return encode_answer(std::move(body), false);
  } catch (const std::exception& error) {
    sentence = error.what();
  }
  co_return encode_error(sentence);
}

}  // namespace

asio::awaitable<void> ControlServer::Lines::send(boost::json::object body) {
  co_await write_line(socket_, encode_answer(std::move(body), true));
}

ControlServer::ControlServer(asio::io_context& io, std::string path, Handler handler)
    : io_(io), path_(std::move(path)), handler_(std::move(handler)), acceptor_(listen(io, path_)) {
  asio::co_spawn(io_, accept(), asio::detached);
}

ControlServer::~ControlServer() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

asio::awaitable<void> ControlServer::accept() {
  asio::steady_timer pause(io_);
  for (;;) {
    auto [error, socket] = co_await acceptor_.async_accept(asio::as_tuple(use_awaitable));
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      // Out of descriptors: an answer must wait until some client has left.
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(asio::as_tuple(use_awaitable));
      continue;
    }
    asio::co_spawn(io_, serve(std::move(socket)), asio::detached);
  }
}

asio::awaitable<void> ControlServer::serve(Socket socket) {
  using namespace asio::experimental::awaitable_operators;
  // Counts this client for as long as the coroutine's frame lives, which may be longer than the server.
  struct Count {
    explicit Count(std::shared_ptr<unsigned> n) : number(std::move(n)) { ++*number; }
    ~Count() { --*number; }
    std::shared_ptr<unsigned> number;
  } const count(clients_);
  try {
    if (*clients_ > kMaximumClients) {
      co_await write_line(
          socket,
          encode_error(fmt::format("fabricd has {} clients already; close some of them", kMaximumClients)));
      co_return;
    }
    std::string buffer;
    Lines lines(socket);
    for (;;) {
      auto [error, size] = co_await asio::async_read_until(
          socket, asio::dynamic_buffer(buffer, kMaximumRequest), '\n', asio::as_tuple(use_awaitable));
      if (error == asio::error::not_found) {
        co_await write_line(
            socket, encode_error(fmt::format("a request has at most {} bytes, and a line feed at its end",
                                             kMaximumRequest)));
      }
      if (error) co_return;
      const std::string text = buffer.substr(0, size - 1);
      buffer.erase(0, size);
      auto result = co_await (answer(handler_, text, lines) || gone(socket, buffer));
      if (result.index() == 1) co_return;
      co_await write_line(socket, std::get<0>(std::move(result)));
    }
  } catch (const boost::system::system_error&) {
    // The client has gone.
  }
}

}  // namespace fabric::daemon
