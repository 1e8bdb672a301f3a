// What the drills share: numbered probes and a TCP stream between hosts of a lab, waiting for a condition,
// and the repair that is owed once something has been broken.
//
// One thread sends all probes; one receives them, with the kernel's time stamps, so that its own waiting does
// not look like a gap. The TCP stream has two threads of its own.
#pragma once

#include <netinet/in.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tools/lab/flow_record.hpp"
#include "tools/lab/host_namespace.hpp"

namespace fabric::tools::lab {

/// Waits until `condition`. Throws Error, with `what`, where it does not come within 30 s.
void await(const std::string& what, const std::function<bool()>& condition);

/// What has to be done once something was broken: here, in time, or when an error ends the run.
class Repair {
 public:
  explicit Repair(std::function<void()> repair) : repair_(std::move(repair)) {}
  Repair(const Repair&) = delete;
  Repair& operator=(const Repair&) = delete;
  ~Repair();
  /// From now on it is needed.
  void owe() { owed_ = true; }
  void pay();

 private:
  std::function<void()> repair_;
  bool owed_ = false;
};

/// Between whom a flow goes: `address` is one of `to`'s.
struct Endpoints {
  HostNamespace from, to;
  in_addr address;
};

class Socket {
 public:
  Socket() = default;
  /// Throws Error if `fd` is none.
  explicit Socket(int fd);
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_ = -1;
};

/// Numbered datagrams at an even pace, flow after flow in turn.
class Probes {
 public:
  /// Of each flow, how many were sent.
  using Mark = std::vector<std::uint32_t>;

  /// Sends from now on, `rate` a second of all flows together. Throws Error where a socket cannot be made.
  Probes(const std::vector<Endpoints>& flows, unsigned rate);

  [[nodiscard]] Mark mark() const;
  /// Whether every flow has received a probe that was sent after the mark.
  [[nodiscard]] bool received_since(const Mark& mark) const;

  /// Stops sending, and waits until all has arrived or nothing comes any more.
  void finish();
  /// @name What became of a flow's probes; after finish().
  /// @{
  [[nodiscard]] std::vector<FlowResult> results() const;
  /// Of those with the numbers [first, last).
  [[nodiscard]] FlowResult result(std::size_t flow, std::uint32_t first, std::uint32_t last) const;
  /// @}

 private:
  struct Flow {
    Socket in, out;
    FlowRecord record;  ///< `sent` is the sender's, `arrivals` the receiver's; read when both have ended
    std::atomic<std::uint32_t> sent = 0, arrived = 0;
    std::atomic<std::int64_t> highest = -1;
  };
  void send(const std::stop_token& stop);
  void receive(const std::stop_token& stop);
  void take_all(Flow& flow);

  Nanoseconds interval_;  ///< between any two probes
  std::deque<Flow> flows_;
  std::atomic<Nanoseconds> last_arrival_;
  std::jthread receiver_, sender_;  // last: they end before what they use
};

/// One TCP connection whose every byte is known in advance, at 12.5 MB/s: a load, not the machine's limit.
class Stream {
 public:
  explicit Stream(const Endpoints& endpoints);
  ~Stream();

  [[nodiscard]] std::uint64_t received() const { return received_; }

  /// Sends the end, waits for it at the other side; bytes delivered. Throws Error if any byte was wrong.
  std::uint64_t finish();

 private:
  void send(const std::stop_token& stop);
  void receive();

  Socket in_, out_;
  std::uint64_t sent_ = 0;  ///< the sender's
  std::atomic<std::uint64_t> received_ = 0;
  std::atomic<bool> ended_ = false, wrong_ = false;
  std::jthread receiver_, sender_;
};

}  // namespace fabric::tools::lab
