#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/parse.hpp>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "fabricd/control/event_log.hpp"
#include "fabricd/control/request.hpp"
#include "fabricd/control/server.hpp"

namespace fabric::daemon {
namespace {

namespace asio = boost::asio;
namespace json = boost::json;
using namespace std::chrono_literals;

std::string complaint(std::string_view line) {
  try {
    parse_request(line);
  } catch (const RequestError& error) {
    return error.what();
  }
  return "";
}

TEST(ControlRequest, Parses) {
  const Request request =
      parse_request(R"({"object":"path","verb":"show","args":{"to":"h3","n":7,"all":true}})");
  EXPECT_EQ(request.object, "path");
  EXPECT_EQ(request.text("to"), "h3");
  EXPECT_EQ(request.number("n", 1, 10), 7u);
  EXPECT_TRUE(request.flag("all"));
  EXPECT_EQ(request.text("from"), std::nullopt);
  EXPECT_EQ(parse_request(R"({"object":"status"})").verb, "show");
}

TEST(ControlRequest, SaysWhatIsWrong) {
  EXPECT_THAT(complaint("status"), testing::HasSubstr("is not JSON"));
  EXPECT_THAT(complaint("[1]"), testing::HasSubstr("must be a JSON object"));
  EXPECT_THAT(complaint("{}"), testing::HasSubstr("has no \"object\""));
  EXPECT_THAT(complaint(R"({"object":1})"), testing::HasSubstr("\"object\" must be a text"));
  EXPECT_THAT(complaint(R"({"object":"a","args":[]})"), testing::HasSubstr("\"args\" must be"));
  EXPECT_THAT(complaint(R"({"object":"a","arg":{}})"), testing::HasSubstr("unknown member \"arg\""));
  const Request request = parse_request(R"({"object":"bw","args":{"n":0,"x":-1,"y":1.5,"z":"1"}})");
  for (const char* name : {"n", "x", "y", "z"}) {
    EXPECT_THROW((void)request.number(name, 1, 10), RequestError) << name;
  }
  EXPECT_THROW((void)request.text("n"), RequestError);
  EXPECT_THROW((void)request.flag("n"), RequestError);
  EXPECT_THROW(request.only({"n", "x", "y"}), RequestError);
  EXPECT_NO_THROW(request.only({"n", "x", "y", "z"}));
}

TEST(EventLog, KeepsTheLatestAndShowsTheGap) {
  EventLog log(3);
  EXPECT_EQ(log.from(1), nullptr);
  EXPECT_EQ(log.first_number(), 1u);
  for (int i = 1; i <= 5; ++i) {
    log.add(std::chrono::system_clock::time_point(1'000'000us * i + 42us), EventLevel::info, "k",
            std::to_string(i));
  }
  EXPECT_EQ(log.first_number(), 3u);
  EXPECT_EQ(log.next_number(), 6u);
  EXPECT_EQ(log.from(1)->number, 3u);  // 1 and 2 have left
  EXPECT_EQ(log.from(4)->text, "4");
  EXPECT_EQ(log.from(6), nullptr);
  EXPECT_EQ(to_json(*log.from(5)).at("time").as_string(), "1970-01-01T00:00:05.000042Z");
}

/// A server on a thread of its own that answers "echo" with its arguments, "stream" with 3 lines, "flood"
/// without end and "wait" never.
class ControlSocket : public testing::Test {
 protected:
  ControlSocket() {
    char name[] = "/tmp/fabric-control-XXXXXX";
    directory_ = mkdtemp(name);
    path_ = directory_ / "sub" / "fabricd.sock";
    server_ = std::make_unique<ControlServer>(
        io_, path_, [this](Request request, ControlServer::Lines& lines) { return answer(request, lines); });
    thread_ = std::thread([this] { io_.run(); });
  }
  ~ControlSocket() override {
    asio::post(io_, [this] {
      server_.reset();
      io_.stop();
    });
    thread_.join();
    EXPECT_FALSE(std::filesystem::exists(path_));
    std::filesystem::remove_all(directory_);
  }

  asio::awaitable<json::object> answer(Request request, ControlServer::Lines& lines) {
    if (request.object == "stream") {
      for (int i = 0; i < 3; ++i) {
        json::object line;
        line["i"] = i;
        co_await lines.send(std::move(line));
      }
    } else if (request.object == "flood") {
      json::object line;
      line["text"] = std::string(1000, 'x');
      for (;;) co_await lines.send(line);
    } else if (request.object == "wait") {
      ++waiting_;
      asio::steady_timer forever(io_, asio::steady_timer::time_point::max());
      co_await forever.async_wait(asio::as_tuple(asio::use_awaitable));
      --waiting_;
    } else if (request.object == "fail") {
      throw RequestError("it failed");
    }
    co_return request.args;
  }

  int connect() const {
    const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const timeval limit{20, 0};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return socket;
  }
  static void say(int socket, const std::string& text) {
    (void)!send(socket, text.data(), text.size(), MSG_NOSIGNAL);
  }
  /// A line without its end; "EOF" where the server has closed.
  static std::string hear(int socket) {
    std::string line;
    for (char c; recv(socket, &c, 1, 0) == 1;) {
      if (c == '\n') return line;
      line += c;
    }
    return "EOF";
  }
  static std::string ask(int socket, const std::string& text) {
    say(socket, text + "\n");
    return hear(socket);
  }
  template <class Condition>
  static bool eventually(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + 20s;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }

  asio::io_context io_;
  std::filesystem::path directory_, path_;
  std::unique_ptr<ControlServer> server_;
  std::thread thread_;
  std::atomic<int> waiting_ = 0;
};

constexpr const char* kEcho = R"({"object":"echo","args":{"a":1}})";
constexpr const char* kEchoed = R"({"schema":1,"a":1})";

TEST_F(ControlSocket, AnswersInOneLineOrMany) {
  const int client = connect();
  EXPECT_EQ(ask(client, kEcho), kEchoed);
  EXPECT_EQ(ask(client, R"({"object":"fail"})"), R"({"schema":1,"error":"it failed"})");
  EXPECT_EQ(ask(client, R"({"object":"stream","args":{"end":true}})"), R"({"schema":1,"more":true,"i":0})");
  EXPECT_EQ(hear(client), R"({"schema":1,"more":true,"i":1})");
  EXPECT_EQ(hear(client), R"({"schema":1,"more":true,"i":2})");
  EXPECT_EQ(hear(client), R"({"schema":1,"end":true})");
  // Several requests at once are done one after the other.
  say(client, std::string(kEcho) + "\n" + kEcho + "\n" + kEcho);
  EXPECT_EQ(hear(client), kEchoed);
  EXPECT_EQ(hear(client), kEchoed);
  say(client, "\n");
  EXPECT_EQ(hear(client), kEchoed);
  close(client);
}

TEST_F(ControlSocket, OwnerAndGroupOnly) {
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0660u);
}

TEST_F(ControlSocket, GarbageGetsAnErrorAndTheNextRequestAnAnswer) {
  const int client = connect();
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    std::string garbage;
    for (unsigned n = random() % 300; n > 0; --n) garbage += static_cast<char>(random());
    std::erase(garbage, '\n');
    const std::string answer = ask(client, garbage);
    ASSERT_TRUE(json::parse(answer).as_object().contains("error")) << answer;
  }
  EXPECT_EQ(ask(client, kEcho), kEchoed);
  close(client);
}

TEST_F(ControlSocket, ALineWithoutEndIsClosed) {
  const int client = connect();
  say(client, std::string(kMaximumRequest + 1, '{'));
  EXPECT_THAT(hear(client), testing::HasSubstr("at most 65536 bytes"));
  EXPECT_EQ(hear(client), "EOF");
  close(client);
}

TEST_F(ControlSocket, AClientThatDoesNotReadStopsNobodyElse) {
  const int lazy = connect(), brisk = connect();
  say(lazy, R"({"object":"flood"})"
            "\n");
  EXPECT_THAT(hear(lazy), testing::HasSubstr("\"more\":true"));  // it flows; and from here on nobody reads
  for (int i = 0; i < 100; ++i) ASSERT_EQ(ask(brisk, kEcho), kEchoed);
  close(lazy);
  EXPECT_EQ(ask(brisk, kEcho), kEchoed);
  close(brisk);
}

TEST_F(ControlSocket, ARequestEndsWhenItsClientHasGone) {
  const int client = connect();
  say(client, R"({"object":"wait"})"
              "\n");
  EXPECT_TRUE(eventually([this] { return waiting_ == 1; }));
  close(client);
  EXPECT_TRUE(eventually([this] { return waiting_ == 0; }));
}

TEST_F(ControlSocket, ManyClients) {
  std::vector<int> clients;
  for (unsigned i = 0; i < ControlServer::kMaximumClients; ++i) {
    clients.push_back(connect());
    ASSERT_EQ(ask(clients.back(), kEcho), kEchoed) << i;
  }
  const int late = connect();
  EXPECT_THAT(hear(late), testing::HasSubstr("clients already"));
  EXPECT_EQ(hear(late), "EOF");
  close(late);
  close(clients.back());
  clients.pop_back();
  // There is room again as soon as the server has noticed.
  EXPECT_TRUE(eventually([&] {
    const int next = connect();
    const bool good = ask(next, kEcho) == kEchoed;
    close(next);
    return good;
  }));
  for (const int client : clients) close(client);
}

TEST_F(ControlSocket, ASocketInUseIsNotTaken) {
  asio::io_context io;
  EXPECT_THROW(ControlServer(io, path_, {}), std::runtime_error);
  const int client = connect();
  EXPECT_EQ(ask(client, kEcho), kEchoed);
  close(client);
}

TEST_F(ControlSocket, WhatAKilledDaemonLeftIsReplaced) {
  const auto path = directory_ / "left.sock";
  {
    asio::io_context io;
    asio::local::stream_protocol::acceptor left(io, path.string());
  }
  ASSERT_TRUE(std::filesystem::exists(path));
  asio::io_context io;
  EXPECT_NO_THROW(ControlServer(io, path, {}));
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace fabric::daemon
