// A gateway alone, without the daemon around it: for tests on a LAN with other people's VRRP.
//
//   gateway_program CONFIG GUID [OWN_SOCKET PEER_SOCKET]
//
// The sockets (unix, datagram) stand for the ring: what one floods the other gets. Commands, a line each on
// standard input: view, handover, reachable 0|1, upstream 0|1 [NEXT_HOP...], quit (as SIGTERM does). Answers
// and events are JSON, a line each.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/streambuf.hpp>
#include <boost/json/serialize.hpp>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <optional>
#include <sstream>

#include "fabricd/gateway/gateway.hpp"
#include "fabricd/watch.hpp"

using namespace fabric;
using namespace fabric::daemon;

namespace {

void print(const boost::json::object& object) {
  std::cout << boost::json::serialize(object) << std::endl;
}

/// The other gateway's end of the ring.
class Ring {
 public:
  Ring(const char* own, const char* peer)
      : own_(own), peer_(peer), descriptor_(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0)) {
    unlink(own);
    const sockaddr_un address = address_of(own_);
    if (bind(descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      std::perror(own);
      std::exit(1);
    }
  }
  ~Ring() {
    close(descriptor_);
    unlink(own_.c_str());
  }
  [[nodiscard]] int descriptor() const { return descriptor_; }
  void send(std::span<const std::byte> state) const {
    const sockaddr_un address = address_of(peer_);
    sendto(descriptor_, state.data(), state.size(), 0, reinterpret_cast<const sockaddr*>(&address),
           sizeof address);
  }
  std::optional<std::vector<std::byte>> receive() const {
    std::vector<std::byte> state(256);
    const ssize_t length = recv(descriptor_, state.data(), state.size(), 0);
    if (length < 0) return std::nullopt;
    state.resize(static_cast<std::size_t>(length));
    return state;
  }

 private:
  static sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
  }
  std::string own_, peer_;
  int descriptor_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 5) {
    std::cerr << "gateway_program CONFIG GUID [OWN_SOCKET PEER_SOCKET]\n";
    return 2;
  }
  boost::asio::io_context io;
  const Guid self(std::stoull(argv[2])), other(3 - self.value());
  std::optional<Ring> ring;
  if (argc == 5) ring.emplace(argv[3], argv[4]);
  bool reachable = ring.has_value();
  std::vector<std::byte> flooded;

  Gateway::Callbacks callbacks;
  callbacks.record = [](EventLevel level, const std::string& kind, const std::string& text,
                        boost::json::object facts) {
    facts["kind"] = kind;
    facts["text"] = text;
    facts["level"] = std::string(to_string(level));
    print(facts);
  };
  callbacks.flood = [&](const std::vector<std::byte>& state) {
    flooded = state;
    if (ring && reachable) ring->send(state);
  };
  std::optional<Gateway> gateway;
  try {
    const Configuration configuration = load_configuration(argv[1]);
    gateway.emplace(io, configuration.gateway, self, callbacks);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }

  std::optional<DescriptorWatch> ring_watch;
  if (ring) {
    gateway->peer_reachable(other, true);
    ring_watch.emplace(io, ring->descriptor(), [&] {
      while (const auto state = ring->receive()) {
        if (!reachable) continue;
        if (state->empty()) {  // it has just begun: tell it
          ring->send(flooded);
        } else {
          gateway->peer_state(other, *state);
        }
      }
    });
    ring->send({});
  }

  boost::asio::signal_set signals(io, SIGTERM, SIGINT);
  signals.async_wait([&](const boost::system::error_code&, int) { io.stop(); });
  boost::asio::posix::stream_descriptor input(io, dup(STDIN_FILENO));
  boost::asio::streambuf buffer;
  std::function<void()> read = [&] {
    boost::asio::async_read_until(input, buffer, '\n',
                                  [&](const boost::system::error_code& error, std::size_t) {
                                    if (error) return;
                                    std::istream stream(&buffer);
                                    std::string line, word;
                                    std::getline(stream, line);
                                    std::istringstream words(line);
                                    words >> word;
                                    if (word == "view") {
                                      print(gateway->view());
                                    } else if (word == "handover") {
                                      print({{"handover", gateway->handover()}});
                                    } else if (word == "reachable") {
                                      words >> reachable;
                                      if (reachable && ring) ring->send(flooded), ring->send({});
                                      gateway->peer_reachable(other, reachable);
                                      print({{"reachable", reachable}});
                                    } else if (word == "upstream") {
                                      Gateway::Upstream upstream;
                                      words >> upstream.present;
                                      std::string hop;
                                      while (words >> hop) upstream.next_hops.push_back(*parse_address(hop));
                                      gateway->upstream(true, upstream);
                                      gateway->upstream(false, upstream);
                                      print({{"upstream", upstream.present}});
                                    } else if (word == "quit") {
                                      return io.stop();
                                    }
                                    read();
                                  });
  };
  read();
  print({{"kind", "ready"}});
  io.run();
  ring_watch.reset();
  gateway.reset();
  return 0;
}
