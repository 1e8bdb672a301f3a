#include "tools/lab/drill_traffic.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr auto kPatience = std::chrono::seconds(30);  ///< for anything to recover
constexpr auto kQuiet = milliseconds(1000);           ///< nothing comes for so long: the rest is lost
constexpr auto kSettled = milliseconds(50);           ///< all is there; time for duplicates
constexpr auto kSlack = milliseconds(2);              ///< that the sender makes up for
constexpr std::uint16_t kProbePort = 8100, kStreamPort = 8099;
constexpr std::size_t kProbeSize = 64;
constexpr std::uint64_t kStreamRate = 12'500'000;  ///< bytes a second
constexpr std::size_t kStreamChunk = 16384;
constexpr std::size_t kRecordedSeconds = 60;  ///< room at the start, so that a record does not move early

sockaddr_in endpoint(in_addr address, std::uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_addr = address;
  result.sin_port = htons(port);
  return result;
}

void bind_to(const Socket& socket, std::uint16_t port) {
  const sockaddr_in any = endpoint({INADDR_ANY}, port);
  const int on = 1;
  setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0)
    throw_system_error("bind");
}

void connect_to(const Socket& socket, in_addr address, std::uint16_t port) {
  const sockaddr_in there = endpoint(address, port);
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&there), sizeof there) != 0)
    throw_system_error("connect");
}

Nanoseconds realtime() {
  return std::chrono::duration_cast<Nanoseconds>(std::chrono::system_clock::now().time_since_epoch());
}

/// When the kernel received the datagram, by its own clock reading; now, where it does not say.
Nanoseconds stamp_of(const msghdr& message) {
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_TIMESTAMPNS)
    return realtime();
  timespec stamp{};
  std::memcpy(&stamp, CMSG_DATA(header), sizeof stamp);
  return std::chrono::seconds(stamp.tv_sec) + Nanoseconds(stamp.tv_nsec);
}

/// The byte at a place of the stream: places are counted in words of eight bytes.
std::uint8_t content(std::uint64_t offset) {
  return static_cast<std::uint8_t>((offset / 8) >> (offset % 8 * 8));
}

}  // namespace

void await(const std::string& what, const std::function<bool()>& condition) {
  const auto deadline = steady_clock::now() + kPatience;
  while (!condition()) {
    if (steady_clock::now() > deadline) throw Error(fmt::format("{}: not within {}", what, kPatience));
    std::this_thread::sleep_for(milliseconds(2));
  }
}

Repair::~Repair() {
  try {
    pay();
  } catch (const std::exception&) {  // the first error is the one to tell
  }
}

void Repair::pay() {
  if (std::exchange(owed_, false)) repair_();
}

Socket::Socket(int fd) : fd_(fd) {
  if (fd < 0) throw_system_error("cannot open a socket");
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

Probes::Probes(const std::vector<Endpoints>& flows, unsigned rate)
    : interval_(Nanoseconds(std::chrono::seconds(1)) / rate),
      flows_(flows.size()),
      last_arrival_(realtime()) {
  for (std::size_t i = 0; i < flows_.size(); ++i) {
    const auto port = static_cast<std::uint16_t>(kProbePort + i);
    flows[i].to.visit([&] {
      Socket& in = flows_[i].in = Socket(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      const int on = 1, room = 16 << 20;
      setsockopt(in.get(), SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
      setsockopt(in.get(), SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
      bind_to(in, port);
    });
    flows[i].from.visit([&] {
      flows_[i].out = Socket(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      connect_to(flows_[i].out, flows[i].address, port);
    });
    flows_[i].record.sent.reserve(rate * kRecordedSeconds);
    flows_[i].record.arrivals.reserve(rate * kRecordedSeconds);
  }
  receiver_ = std::jthread([this](const std::stop_token& stop) { receive(stop); });
  sender_ = std::jthread([this](const std::stop_token& stop) { send(stop); });
}

Probes::Mark Probes::mark() const {
  Mark counts;
  for (const Flow& flow : flows_) counts.push_back(flow.sent);
  return counts;
}

bool Probes::received_since(const Mark& mark) const {
  for (std::size_t i = 0; i < flows_.size(); ++i)
    if (flows_[i].highest <= static_cast<std::int64_t>(mark[i])) return false;
  return true;
}

void Probes::finish() {
  sender_ = {};
  const auto complete = [](const Flow& flow) { return flow.arrived >= flow.sent; };
  await("the end of the probes", [&] {
    const auto end = std::all_of(flows_.begin(), flows_.end(), complete) ? kSettled : kQuiet;
    return realtime() - last_arrival_.load() > end;
  });
  receiver_ = {};
}

std::vector<FlowResult> Probes::results() const {
  std::vector<FlowResult> results;
  for (std::size_t i = 0; i < flows_.size(); ++i) results.push_back(result(i, 0, flows_[i].sent));
  return results;
}

FlowResult Probes::result(std::size_t flow, std::uint32_t first, std::uint32_t last) const {
  const FlowRecord& all = flows_[flow].record;
  FlowRecord part;
  part.sent.assign(all.sent.begin() + first, all.sent.begin() + last);
  for (const FlowRecord::Arrival& arrival : all.arrivals)
    if (arrival.sequence >= first && arrival.sequence < last)
      part.arrivals.push_back({arrival.sequence - first, arrival.at});
  return evaluate(part, interval_ * static_cast<int>(flows_.size()));
}

void Probes::send(const std::stop_token& stop) {
  prctl(PR_SET_TIMERSLACK, 1000);
  std::array<std::byte, kProbeSize> probe{};
  auto next = steady_clock::now();
  for (std::size_t turn = 0; !stop.stop_requested(); turn = (turn + 1) % flows_.size()) {
    std::this_thread::sleep_until(next);
    // What this thread has missed is not made up for: a burst of thousands at once is not the rate that is
    // asked for, and overruns queues that have nothing to do with the fault.
    next = std::max(next + interval_, steady_clock::now() - kSlack);
    Flow& flow = flows_[turn];
    const std::uint32_t sequence = flow.sent;
    std::memcpy(probe.data(), &sequence, sizeof sequence);
    flow.record.sent.push_back(realtime());
    // What the kernel refuses counts as sent, and is lost.
    (void)!::send(flow.out.get(), probe.data(), probe.size(), 0);
    flow.sent = sequence + 1;
  }
}

void Probes::receive(const std::stop_token& stop) {
  std::vector<pollfd> descriptors;
  for (const Flow& flow : flows_) descriptors.push_back({flow.in.get(), POLLIN, 0});
  while (!stop.stop_requested()) {
    poll(descriptors.data(), descriptors.size(), 10);
    for (std::size_t i = 0; i < flows_.size(); ++i)
      if (descriptors[i].revents != 0) take_all(flows_[i]);
  }
}

void Probes::take_all(Flow& flow) {
  std::array<std::byte, kProbeSize> probe;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(timespec))> control;
  while (true) {
    iovec part{probe.data(), probe.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (recvmsg(flow.in.get(), &message, 0) < static_cast<ssize_t>(sizeof(std::uint32_t))) return;
    std::uint32_t sequence = 0;
    std::memcpy(&sequence, probe.data(), sizeof sequence);
    flow.record.arrivals.push_back({sequence, stamp_of(message)});
    flow.highest = std::max<std::int64_t>(flow.highest, sequence);
    ++flow.arrived;
    last_arrival_ = realtime();
  }
}

Stream::Stream(const Endpoints& endpoints) {
  Socket listener;
  endpoints.to.visit([&] {
    listener = Socket(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    bind_to(listener, kStreamPort);
    if (listen(listener.get(), 1) != 0) throw_system_error("listen");
  });
  endpoints.from.visit([&] {
    out_ = Socket(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    connect_to(out_, endpoints.address, kStreamPort);
  });
  in_ = Socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  receiver_ = std::jthread([this] { receive(); });
  sender_ = std::jthread([this](const std::stop_token& stop) { send(stop); });
}

Stream::~Stream() {
  shutdown(out_.get(), SHUT_RDWR);
  shutdown(in_.get(), SHUT_RDWR);
}

std::uint64_t Stream::finish() {
  sender_ = {};
  shutdown(out_.get(), SHUT_WR);
  await("the end of the TCP stream", [this] { return ended_.load(); });
  receiver_ = {};
  if (wrong_) throw Error("the TCP stream has delivered something that was not sent");
  if (received_ != sent_)
    throw Error(fmt::format("TCP: {} bytes sent, {} delivered", sent_, received_.load()));
  return received_;
}

void Stream::send(const std::stop_token& stop) {
  std::vector<std::uint8_t> chunk(kStreamChunk);
  auto next = steady_clock::now();
  while (!stop.stop_requested()) {
    std::this_thread::sleep_until(next);
    next = std::max(next + Nanoseconds(kStreamChunk * 1'000'000'000 / kStreamRate), steady_clock::now());
    for (std::size_t i = 0; i < chunk.size(); ++i) chunk[i] = content(sent_ + i);
    for (std::size_t done = 0; done < chunk.size();) {
      const ssize_t sent = ::send(out_.get(), chunk.data() + done, chunk.size() - done, MSG_NOSIGNAL);
      if (sent <= 0) return;  // finish() will find bytes missing
      done += static_cast<std::size_t>(sent);
      sent_ += static_cast<std::size_t>(sent);
    }
  }
}

void Stream::receive() {
  std::vector<std::uint8_t> buffer(65536);
  for (ssize_t got; (got = recv(in_.get(), buffer.data(), buffer.size(), 0)) > 0;) {
    const std::uint64_t offset = received_;
    for (std::size_t i = 0; i < static_cast<std::size_t>(got); ++i)
      if (buffer[i] != content(offset + i)) wrong_ = true;
    received_ = offset + static_cast<std::size_t>(got);
  }
  ended_ = true;
}

}  // namespace fabric::tools::lab
