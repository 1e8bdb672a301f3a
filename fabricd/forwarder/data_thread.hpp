// The data thread: takes frames from completion queues and packets from the TUN device, and runs each to its
// end: relayed, delivered, or dropped for a counted reason.
//
// A round of the loop
//   commands of the control thread; for each port: a batch of completions, in which received frames are
//   decided on (decision.hpp), handed to the egress queue, or put in order (routing/sequence_window.hpp) and
//   written to the TUN device; frames whose wait for order is over; a batch from the TUN device;
//   measurements; then every egress queue gives the adapter what it has room for, in one chain.
// Transit comes before local traffic in each round, and local traffic stops for as long as an egress queue is
// above a threshold, so that the kernel's queue in front of the TUN device fills instead.
//
// Buffers. A receive queue always has its number of buffers again when a batch is done: a received frame is
// kept only if a free buffer takes its place, and is dropped otherwise. No receive ever waits for a send, so
// there is no cycle of hosts that wait for each other (docs/forwarder.md has the proof).
//
// When a cable dies (a failed completion, or detach()) all that has no completion yet leaves by the other
// way, in order and marked as turned, before anything newer.
//
// Threading: everything here runs on the data thread, but for the functions of the section "control thread".
// The two share a queue of commands, one of retired snapshots and one of echo replies, each with one producer
// and one consumer, flags, and counters. No lock; no allocation, but for sequence windows of hosts that are
// new; no exception.
//
// The loop spins for a short time after the last work, then sleeps on the completion channels, the TUN device
// and the commands' eventfd, all armed before a last look.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <boost/lockfree/spsc_queue.hpp>
#include <memory>
#include <optional>
#include <semaphore>
#include <thread>
#include <vector>

#include "fabricd/forwarder/buffer_arena.hpp"
#include "fabricd/forwarder/counters.hpp"
#include "fabricd/forwarder/decision.hpp"
#include "fabricd/forwarder/egress_queue.hpp"
#include "fabricd/forwarder/forwarder.hpp"
#include "fabricd/forwarder/measurement_player.hpp"
#include "fabricd/forwarder/tun_device.hpp"
#include "routing/forwarding_state.hpp"
#include "routing/prefix_table.hpp"
#include "routing/sequence_window.hpp"

namespace fabric::daemon {

/// What the data path reads; made by the control thread, never changed.
struct Snapshot {
  std::shared_ptr<const routing::ForwardingState> state;
  routing::PrefixTable prefixes;
};

/// Work requests that an adapter has at a time, for each queue pair.
inline constexpr unsigned kSendDepth = 128;

class DataThread final : Outlet {
 public:
  /// Numbers that depend on the configuration only.
  struct Limits {
    explicit Limits(const ForwarderConfiguration&);
    unsigned receives;      ///< posted per port
    std::uint32_t transit;  ///< frames in an egress queue beyond which new ones are dropped
    std::uint32_t local;    ///< frames in an egress queue beyond which local senders wait
    std::size_t reserve;    ///< free buffers that local senders leave for receiving
  };

  DataThread(BufferArena&, TunDevice&, const ForwarderConfiguration&);
  ~DataThread();

  /// @name Control thread
  /// @{
  struct Queues {
    ibv_cq* cq = nullptr;
    ibv_comp_channel* channel = nullptr;
    std::uint32_t lkey = 0;
  };
  /// Waits until it is done, as do all that follow but publish and begin. Without queues: closes.
  void open(PortIndex, Queues);
  void prepare(PortIndex, ibv_qp*);
  void attach(PortIndex, ibv_qp*, std::uint64_t rate);
  void detach(PortIndex,
              std::chrono::milliseconds drain);  ///< `drain`: wait at most so long for flushed receives
  void publish(std::unique_ptr<const Snapshot>);
  void begin(Measurement&);
  void stop();
  void wake();  ///< something outside of the commands has changed

  [[nodiscard]] int event_descriptor() const { return event_; }
  void clear_event() const;
  /// Status of the completion that failed, once per attachment.
  std::optional<ibv_wc_status> take_suspect(PortIndex);
  struct Reply {
    std::uint32_t session = 0;
    EchoReply reply;
  };
  bool take_reply(Reply& reply) { return replies_.pop(reply); }
  [[nodiscard]] const HostCounters& counters() const { return counters_; }
  [[nodiscard]] const PortCounters& counters(PortIndex port) const { return port_at(port).counters; }
  /// @}

 private:
  struct Command {
    enum class Kind : std::uint8_t { open, prepare, attach, detach, publish, begin, stop } kind = Kind::stop;
    PortIndex port = kNoPort;
    ibv_qp* qp = nullptr;
    std::uint64_t rate = 0;
    Duration drain{};
    Queues queues;
    const Snapshot* snapshot = nullptr;
    Measurement* measurement = nullptr;
    bool wait = false;  ///< the control thread waits for done_
  };

  struct Port {
    explicit Port(std::size_t slots) : queue(slots) {}
    enum class State : std::uint8_t {
      idle,      ///< no queue pair
      prepared,  ///< receives are posted
      attached,  ///< frames are sent
      failed,    ///< a completion has said that the cable is dead; waits for detach
      draining,  ///< detach waits for the receives to be flushed
    } state = State::idle;
    Queues queues;
    bool armed = false;
    ibv_qp* qp = nullptr;
    std::uint16_t attachment = 0;  ///< tells completions of this queue pair from those of earlier ones
    unsigned receives = 0;         ///< posted now
    unsigned unsignaled = 0;
    std::uint64_t local_bytes = 0;  ///< in the egress queue beyond which local senders wait
    EgressQueue queue;
    TimePoint drain_until;
    std::atomic<int> suspect{0};  ///< ibv_wc_status
    PortCounters counters;
  };

  struct SlotFacts {
    std::uint32_t length = 0;       ///< bytes received or to be sent
    PortIndex ingress = kNoPort;    ///< it was received by
    PortIndex posted_on = kNoPort;  ///< it is in the receive queue of
    std::uint32_t clear_to = 0;     ///< payload bytes up to here are zero, but for a measurement's header
  };

  // --- the loop
  void run();
  void sleep(TimePoint now);
  bool take_commands();
  void obey(const Command&);
  void send(Command);
  void send_and_wait(Command);
  void signal_event();

  // --- ports
  [[nodiscard]] Port& port_at(PortIndex port) const { return *ports_[port.value()]; }
  void take_back(PortIndex);
  bool poll_port(PortIndex);
  void received(PortIndex, Slot, std::uint32_t length);
  void post_receives(Port&, PortIndex, const Slot* slots, std::size_t count);
  void flush_all();
  void flush(PortIndex);
  void fail(PortIndex, ibv_wc_status);
  void turn_queue(PortIndex);
  void begin_drain(PortIndex, Duration limit);
  void finish_drain(PortIndex);
  bool enqueue(PortIndex egress, Slot, std::uint32_t length);
  [[nodiscard]] bool above_local_limit(const Port&) const;

  // --- this host's traffic
  bool read_tun();
  void take_packet(Slot, std::size_t length);
  void refuse(Slot, std::span<const std::byte> packet, HostCounter reason);
  void deliver(PortIndex, Slot, std::uint32_t length, const routing::FrameHeader&);
  void hand_over(Slot);
  bool send_frame(Slot, std::uint32_t length, routing::FrameHeader);
  void drop(Slot slot, HostCounter reason);
  [[nodiscard]] const routing::HostRoute* route(HostIndex) const;
  [[nodiscard]] bool tun_paused() const;

  // --- Outlet
  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] HostIndex self() const override;
  [[nodiscard]] std::optional<unsigned> way_to(HostIndex) const override;
  Slot take_local() override;
  void give(Slot) override;
  [[nodiscard]] std::span<std::byte> payload(Slot) override;
  void clear_payload(Slot, std::uint32_t used, std::uint32_t size) override;
  bool send(Slot, const Frame&) override;
  [[nodiscard]] bool crowded(HostIndex, unsigned way) const override;
  void report(std::uint32_t session, const EchoReply&) override;
  void finished(Measurement&) override;

  BufferArena& arena_;
  TunDevice& tun_;
  const Limits limits_;
  const Duration spin_;
  const Duration reorder_;
  const std::uint8_t epoch_;

  // Shared with the control thread.
  boost::lockfree::spsc_queue<Command, boost::lockfree::capacity<64>> commands_;
  boost::lockfree::spsc_queue<const Snapshot*, boost::lockfree::capacity<128>> retired_;
  boost::lockfree::spsc_queue<Reply, boost::lockfree::capacity<1024>> replies_;
  std::binary_semaphore done_{0};
  int wake_ = -1, event_ = -1;
  HostCounters counters_;

  // The data thread's own.
  bool stopping_ = false;
  const Snapshot* snapshot_ = nullptr;
  const routing::ForwardingState* state_;  ///< never null
  const routing::ForwardingState nothing_{};
  PortMask up_ = 0;
  PortMask crowded_ = 0;                                ///< ports whose egress queue makes local senders wait
  std::array<std::unique_ptr<Port>, kMaxPorts> ports_;  ///< all there from the beginning
  std::vector<SlotFacts> slots_;
  routing::SequenceWindows windows_;
  struct Free {
    void operator()(void* memory) const noexcept { std::free(memory); }
  };
  /// What this host sends to another on one lane.
  struct LaneState {
    std::uint32_t sequence = 0;
    std::uint32_t way = 0;
    TimePoint steered_until;  ///< the way has changed a moment ago
  };
  std::unique_ptr<LaneState[], Free> lanes_;  ///< by host index and lane; zero pages until used
  unsigned tun_rest_ = 0;                     ///< rounds until the TUN device is looked at again
  bool was_paused_ = false, tun_failed_ = false;
  TimePoint unreachable_refill_;
  unsigned unreachable_tokens_ = 0;
  MeasurementPlayer player_;
  std::thread thread_;
};

}  // namespace fabric::daemon
