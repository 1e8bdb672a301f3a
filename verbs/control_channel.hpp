// Messages between two neighbouring daemons over a cable's control queue pair, and the heartbeat.
//
// Messages of up to kMaxMessage bytes arrive whole and in order while the cable lives. Each end grants the
// other credits for the receive buffers that it has posted, so that a sender never finds none (no RNR), and a
// neighbour that does not read costs a bounded queue, then its connection.
//
// The heartbeat is a zero-length RDMA WRITE on the same queue pair, posted when nothing else was sent for an
// interval, one at a time. The adapter at the other end acknowledges it without its processor. So a failed
// completion means that the cable, the adapter or the queue pair is gone (cut, power off, daemon dead), never
// that the neighbour is busy; and as it is the adapter here that keeps the time (QP timeout and retries), a
// daemon that was not scheduled itself blames nobody.
//
// Single-threaded, no Asio: the owner calls ready() when descriptor() is readable and tick() when next_tick()
// has come. The queue pair needs IBV_ACCESS_REMOTE_WRITE, or the heartbeat is refused.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "verbs/cable.hpp"
#include "verbs/handles.hpp"
#include "words/words.hpp"

namespace fabric::verbs {

class ControlChannel {
 public:
  static constexpr std::size_t kMaxMessage = 16384;  ///< bytes
  static constexpr std::size_t kMaxQueued = 4096;    ///< messages waiting for credits; more is a failure

  struct Callbacks {
    std::function<void(std::span<const std::byte> message)> received;
    /// Once per attach(): the connection is of no more use. `detector` is "completion" or "heartbeat". It is
    /// the owner's part to reset the cable, which leads to detach().
    std::function<void(const std::string& detector, const std::string& reason)> failed;
  };
  struct Counters {
    std::uint64_t messages_sent = 0, messages_received = 0, bytes_sent = 0, bytes_received = 0;
    std::uint64_t credits_sent = 0, heartbeats = 0, failures = 0, waits_for_credit = 0;
  };

  /// Makes the completion queue and channel and registers the buffers. Throws VerbsError.
  ControlChannel(ibv_context* context, ibv_pd* pd, Callbacks callbacks, Duration heartbeat);
  ~ControlChannel();

  /// Sets control_cq and control_cap.
  void fill(CableResources& resources) const;
  /// Readable when ready() has something to do. Stays the same.
  [[nodiscard]] int descriptor() const { return channel_->fd; }

  /// The queue pair is in INIT: posts the receives. Throws VerbsError.
  void prepare(ibv_qp* qp);
  /// The queue pair is in RTS: send() may be called, the heartbeat begins.
  /// `at_most_every`: the heartbeat is not quicker, whatever was configured (Connection::detection).
  void attach(TimePoint now, Duration at_most_every = {});
  /// Lets go of the queue pair and forgets what was queued. Moves it to the error state.
  void detach();

  /// Queues a message, at most kMaxMessage bytes. Does nothing where not attached.
  void send(std::span<const std::byte> message);
  /// Takes completions; calls `received` and `failed`.
  void ready();
  /// When to call tick(); nothing while not attached.
  [[nodiscard]] std::optional<TimePoint> next_tick() const { return next_tick_; }
  void tick(TimePoint now);

  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  static constexpr unsigned kReceives = 32;  ///< buffers posted to receive
  static constexpr unsigned kSends = 16;     ///< messages handed to the adapter at most
  static constexpr unsigned kReserve = 2;    ///< receives kept for messages that only return credits
  static constexpr std::size_t kHeader = 8;
  static constexpr std::size_t kSlot = (kMaxMessage + kHeader + 63) / 64 * 64;

  enum class Kind : std::uint8_t { receive = 1, send = 2, heartbeat = 3 };
  struct Unmap {
    void operator()(std::byte* memory) const noexcept;
  };

  [[nodiscard]] std::uint64_t work_id(Kind kind, unsigned slot) const;
  [[nodiscard]] std::byte* receive_slot(unsigned slot) const { return memory_.get() + slot * kSlot; }
  [[nodiscard]] std::byte* send_slot(unsigned slot) const { return receive_slot(kReceives + slot); }
  int post_receive(unsigned slot);  ///< 0 or errno
  bool post_send(std::span<const std::byte> message);
  void flush();
  void poll();
  void complete(const ibv_wc& completion);
  void take(unsigned slot, std::size_t length);
  void fail(const std::string& detector, const std::string& reason);

  Callbacks callbacks_;
  Duration heartbeat_;  ///< as configured
  Counters counters_;

  std::unique_ptr<std::byte, Unmap> memory_;
  CompletionChannel channel_;
  CompletionQueue cq_;
  MemoryRegion region_;

  // Of the present queue pair.
  ibv_qp* qp_ = nullptr;
  std::uint32_t attachment_ = 0;  ///< tells its completions from those of earlier queue pairs
  bool attached_ = false, failed_ = false;
  Duration interval_{};  ///< of its heartbeat
  unsigned credits_ = 0;  ///< messages that the neighbour has room for
  unsigned owed_ = 0;     ///< credits to give back
  std::vector<std::uint8_t> free_sends_;
  std::deque<std::vector<std::byte>> queue_;
  bool heartbeat_posted_ = false;
  bool active_ = false;  ///< a message was acknowledged since the last tick
  std::optional<TimePoint> next_tick_;
};

}  // namespace fabric::verbs
