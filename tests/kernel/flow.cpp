// Numbered datagrams from one guest to another, and what became of them, as fabric-lab's drills count it.
//
//   flow send ADDRESS RATE     RATE datagrams a second until SIGTERM; prints {"sent":N}
//   flow receive               until SIGTERM, and until nothing more comes; prints
//   {"received":N,"duplicated":N,"reordered":N,"gap_ms":X}
//
// A datagram that the sender's own kernel refuses (no route, no buffer) is sent too: it is lost.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "tools/lab/flow_record.hpp"

namespace {

namespace lab = fabric::tools::lab;

constexpr std::uint16_t kPort = 7001;
constexpr std::size_t kSize = 1000;              // bytes
constexpr int kReceiveBuffer = 4 * 1024 * 1024;  // a receiver that is not scheduled for a while loses nothing
constexpr int kQuiet = 1000;                     // milliseconds: what was on the way has arrived or is lost

sockaddr_in address(in_addr_t host) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(kPort);
  result.sin_addr.s_addr = host;
  return result;
}

/// Readable when SIGTERM has come.
int end_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return signalfd(-1, &set, SFD_CLOEXEC);
}

/// False when it is time to end: the descriptor is not readable, and `end` has been, for `quiet`
/// milliseconds.
bool wait_for(int descriptor, int end, int quiet) {
  std::array<pollfd, 2> descriptors{{{descriptor, POLLIN, 0}, {end, POLLIN, 0}}};
  poll(descriptors.data(), descriptors.size(), -1);
  return descriptors[0].revents != 0 ? descriptors[1].revents == 0 || quiet > 0
                                     : poll(descriptors.data(), 1, quiet) > 0;
}

int send(int socket, const sockaddr_in& to, long rate, int end) {
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  const long interval = 1'000'000'000 / rate;
  const itimerspec times{{interval / 1'000'000'000, interval % 1'000'000'000}, {0, 1}};
  timerfd_settime(timer, 0, &times, nullptr);
  std::array<char, kSize> datagram{};
  std::uint32_t sequence = 0;
  while (wait_for(timer, end, 0)) {
    // After a pause only one: what is tested is the way, not how much fits into a queue at once.
    std::uint64_t expired = 0;
    if (read(timer, &expired, sizeof expired) != sizeof expired) continue;
    std::memcpy(datagram.data(), &sequence, sizeof sequence);
    sendto(socket, datagram.data(), datagram.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
    ++sequence;
  }
  std::printf("{\"sent\":%u}\n", sequence);
  return 0;
}

int receive(int socket, int end) {
  const sockaddr_in here = address(INADDR_ANY);
  setsockopt(socket, SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer);
  if (bind(socket, reinterpret_cast<const sockaddr*>(&here), sizeof here) != 0) {
    std::perror("flow: bind");
    return 1;
  }
  lab::FlowRecord record;
  std::array<char, kSize> datagram{};
  while (wait_for(socket, end, kQuiet)) {
    std::uint32_t sequence = 0;
    if (recv(socket, datagram.data(), datagram.size(), 0) != static_cast<ssize_t>(kSize)) continue;
    std::memcpy(&sequence, datagram.data(), sizeof sequence);
    record.arrivals.push_back({sequence, std::chrono::steady_clock::now().time_since_epoch()});
    if (sequence >= record.sent.size()) record.sent.resize(sequence + std::size_t{1});
  }
  // The sender's clock is another guest's, so that its pauses count as gaps.
  const lab::FlowResult result = lab::evaluate(record, lab::Nanoseconds::max() / 2);
  std::printf("{\"received\":%zu,\"duplicated\":%llu,\"reordered\":%llu,\"gap_ms\":%.1f}\n",
              record.arrivals.size() - result.duplicated, static_cast<unsigned long long>(result.duplicated),
              static_cast<unsigned long long>(result.reordered),
              std::chrono::duration<double, std::milli>(result.longest_gap).count());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  const int end = end_signal();
  const int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (what == "receive") return receive(descriptor, end);
  sockaddr_in to = address(0);
  const long rate = argc > 3 ? std::atol(argv[3]) : 0;
  if (what == "send" && rate > 0 && inet_pton(AF_INET, argv[2], &to.sin_addr) == 1)
    return send(descriptor, to, rate, end);
  std::fprintf(stderr, "usage: flow send ADDRESS RATE | flow receive\n");
  return 2;
}
