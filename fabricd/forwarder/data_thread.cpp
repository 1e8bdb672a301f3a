#include "fabricd/forwarder/data_thread.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

#include "fabricd/forwarder/packet.hpp"

namespace fabric::daemon {
namespace {

using namespace std::chrono_literals;
using routing::FrameClass;
using routing::FrameHeader;

constexpr unsigned kCompletionBatch = 32;  ///< completions of one port in a round
constexpr unsigned kSendBatch = 32;        ///< work requests in one chain
constexpr unsigned kSignalEvery = 16;      ///< and the last of each chain
constexpr unsigned kTunBatch = 32;         ///< packets in a round
constexpr unsigned kTunRest = 4;           ///< rounds without a look at a TUN device that was empty
constexpr int kPriority = -10;             ///< nice value
constexpr unsigned kTrafficLanes = kMeasurementLane;
constexpr unsigned kLanes = 16;
/// A bucket of so many unreachable messages, filled at so many a second: enough for people and for every
/// connection attempt, too few to matter.
constexpr unsigned kUnreachableBurst = 50;
constexpr Duration kUnreachableInterval = 5ms;
/// What local senders may have in an egress queue: frames, and bytes as time at the cable's rate...
constexpr std::uint32_t kLocalFrames = 64;
constexpr Duration kLocalDelay = 2ms;
/// ...but at least so much.
constexpr std::uint64_t kLocalBytes = 1u << 19;

/// Work request ids: attachment, whether a receive, and the slot or the number in the egress queue.
constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 32;
constexpr std::uint64_t receive_id(std::uint16_t attachment, Slot slot) {
  return std::uint64_t{attachment} << 48 | kReceiveBit | slot;
}
constexpr std::uint64_t send_id(std::uint16_t attachment, std::uint32_t number) {
  return std::uint64_t{attachment} << 48 | number;
}

PortIndex port_index(unsigned i) {
  return PortIndex(static_cast<std::uint8_t>(i));
}

int make_event() {
  const int descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (descriptor < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return descriptor;
}
void set_event(int descriptor) {
  const std::uint64_t one = 1;
  // Fails only where the counter is at its limit: then it is readable anyway.
  [[maybe_unused]] const ssize_t written = write(descriptor, &one, sizeof one);
}
void drain_event(int descriptor) {
  std::uint64_t value = 0;
  [[maybe_unused]] const ssize_t got = read(descriptor, &value, sizeof value);
}

}  // namespace

// --- control thread -------------------------------------------------------------------------------------

DataThread::Limits::Limits(const ForwarderConfiguration& configuration) {
  const std::uint32_t sending = configuration.ports * configuration.send_buffers;
  receives = configuration.receive_buffers;
  // A quarter of the buffers stays for what is delivered here and for the other ports when one is full...
  transit = sending - sending / 4;
  // ...and local senders keep away from what transit needs.
  local = std::min(kLocalFrames, sending / 4);
  reserve = sending / 8;
}

DataThread::DataThread(BufferArena& arena, TunDevice& tun, const ForwarderConfiguration& configuration)
    : arena_(arena),
      tun_(tun),
      limits_(configuration),
      spin_(configuration.spin),
      reorder_(configuration.reorder),
      epoch_(static_cast<std::uint8_t>(configuration.incarnation)),
      state_(&nothing_),
      slots_(arena.size()),
      windows_({.hold = configuration.reorder,
                .capacity = static_cast<std::uint32_t>(arena.size() / 4),
                .per_window = static_cast<std::uint32_t>(arena.size() / 8)}),
      player_(*this, counters_) {
  lanes_.reset(static_cast<LaneState*>(
      std::calloc((routing::kMaxHostIndex.value() + std::size_t{1}) * kLanes, sizeof(LaneState))));
  if (!lanes_) throw std::bad_alloc();
  for (auto& port : ports_) port = std::make_unique<Port>(arena.size());
  wake_ = make_event();
  event_ = make_event();
  // Signals are the control thread's.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

DataThread::~DataThread() {
  stop();
  const Snapshot* snapshot = nullptr;
  while (retired_.pop(snapshot)) delete snapshot;
  delete snapshot_;
  close(wake_);
  close(event_);
}

void DataThread::send(Command command) {
  while (!commands_.push(command)) std::this_thread::yield();  // taken in the next round
  wake();
}

void DataThread::wake() {
  set_event(wake_);
}

void DataThread::send_and_wait(Command command) {
  command.wait = true;
  send(command);
  done_.acquire();
}

void DataThread::open(PortIndex port, Queues queues) {
  send_and_wait({.kind = Command::Kind::open, .port = port, .queues = queues});
}
void DataThread::prepare(PortIndex port, ibv_qp* qp) {
  send_and_wait({.kind = Command::Kind::prepare, .port = port, .qp = qp});
}
void DataThread::attach(PortIndex port, ibv_qp* qp, std::uint64_t rate) {
  send_and_wait({.kind = Command::Kind::attach, .port = port, .qp = qp, .rate = rate});
}
void DataThread::detach(PortIndex port, std::chrono::milliseconds drain) {
  send_and_wait({.kind = Command::Kind::detach, .port = port, .drain = drain});
}

void DataThread::publish(std::unique_ptr<const Snapshot> snapshot) {
  const Snapshot* old = nullptr;
  while (retired_.pop(old)) delete old;
  send({.kind = Command::Kind::publish, .snapshot = snapshot.release()});
}

void DataThread::begin(Measurement& measurement) {
  send({.kind = Command::Kind::begin, .measurement = &measurement});
}

void DataThread::stop() {
  if (!thread_.joinable()) return;
  send({.kind = Command::Kind::stop});
  thread_.join();
}

void DataThread::clear_event() const {
  drain_event(event_);
}

std::optional<ibv_wc_status> DataThread::take_suspect(PortIndex port) {
  const int status = port_at(port).suspect.exchange(0, std::memory_order_acquire);
  if (status == 0) return std::nullopt;
  return static_cast<ibv_wc_status>(status);
}

// --- the loop -------------------------------------------------------------------------------------------

void DataThread::run() {
  pthread_setname_np(pthread_self(), "forwarder");
  prctl(PR_SET_TIMERSLACK, 1);
  // Before the programs whose packets it carries, as the kernel's own forwarding would be. Without the right
  // to it goes on as it is.
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kPriority);
  TimePoint last_work = now();
  while (!stopping_) {
    bool busy = take_commands();
    for (unsigned i = 0; i < kMaxPorts; ++i)
      if (ports_[i]->queues.cq != nullptr) busy |= poll_port(port_index(i));
    flush_all();
    const TimePoint time = now();
    windows_.expire(time, [this](Slot slot) { hand_over(slot); });
    busy |= read_tun();
    busy |= player_.run();
    flush_all();
    for (unsigned i = 0; i < kMaxPorts; ++i) {
      const Port& port = *ports_[i];
      if (port.state == Port::State::draining && (port.receives == 0 || time >= port.drain_until))
        finish_drain(port_index(i));
    }
    if (busy) {
      counters_[HostCounter::loop_busy].add();
      last_work = time;
    } else if (time - last_work >= spin_) {
      sleep(time);
    }
  }
}

void DataThread::sleep(TimePoint time) {
  for (auto& port : ports_) {
    if (port->queues.cq == nullptr || port->armed) continue;
    if (ibv_req_notify_cq(port->queues.cq, 0) == 0) port->armed = true;
  }
  // What came before the arming tells nobody: a last look.
  for (unsigned i = 0; i < kMaxPorts; ++i)
    if (ports_[i]->queues.cq != nullptr && poll_port(port_index(i))) return;

  std::optional<TimePoint> until = windows_.deadline();
  const auto earlier = [&](std::optional<TimePoint> timer) {
    if (timer && (!until || *timer < *until)) until = timer;
  };
  earlier(player_.next_timer());

  std::array<pollfd, 2 + kMaxPorts> descriptors;
  std::array<Port*, 2 + kMaxPorts> owners{};
  nfds_t count = 0;
  descriptors[count++] = {wake_, POLLIN, 0};
  const bool paused = tun_paused();
  if (!paused) descriptors[count++] = {tun_.descriptor(), POLLIN, 0};
  for (auto& port : ports_) {
    if (port->state == Port::State::draining) earlier(port->drain_until);
    if (port->queues.channel == nullptr) continue;
    owners[count] = port.get();
    descriptors[count++] = {port->queues.channel->fd, POLLIN, 0};
  }
  timespec timeout{};
  if (until) {
    const Duration rest = std::max(*until - time, Duration::zero());
    timeout.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(rest).count();
    timeout.tv_nsec = (rest % 1s).count();
  }
  counters_[HostCounter::loop_sleeps].add();
  if (ppoll(descriptors.data(), count, until ? &timeout : nullptr, nullptr) <= 0) return;
  if (descriptors[0].revents != 0) drain_event(wake_);
  if (!paused && descriptors[1].revents != 0) tun_rest_ = 0;
  for (nfds_t i = 0; i < count; ++i) {
    if (owners[i] == nullptr || descriptors[i].revents == 0) continue;
    ibv_cq* cq = nullptr;
    void* context = nullptr;
    unsigned events = 0;
    while (ibv_get_cq_event(owners[i]->queues.channel, &cq, &context) == 0) ++events;
    if (events > 0) ibv_ack_cq_events(owners[i]->queues.cq, events);
    owners[i]->armed = false;
  }
}

bool DataThread::take_commands() {
  bool any = false;
  for (Command command; commands_.pop(command); any = true) obey(command);
  return any;
}

void DataThread::obey(const Command& command) {
  using Kind = Command::Kind;
  switch (command.kind) {
    case Kind::open: {
      Port& port = port_at(command.port);
      take_back(command.port);
      port.queues = command.queues;
      port.armed = false;
      break;
    }
    case Kind::prepare: {
      Port& port = port_at(command.port);
      take_back(command.port);
      port.qp = command.qp;
      port.state = Port::State::prepared;
      ++port.attachment;
      port.receives = 0;
      std::array<Slot, kCompletionBatch> batch;
      for (unsigned posted = 0; posted < limits_.receives;) {
        std::size_t n = 0;
        while (n < batch.size() && posted < limits_.receives && (batch[n] = arena_.take()) != kNoSlot)
          ++n, ++posted;
        if (n == 0) break;
        post_receives(port, command.port, batch.data(), n);
      }
      break;
    }
    case Kind::attach: {
      Port& port = port_at(command.port);
      if (port.state != Port::State::prepared || port.qp != command.qp) break;  // it has failed already
      port.state = Port::State::attached;
      port.unsignaled = 0;
      port.local_bytes =
          std::max(kLocalBytes, command.rate / 8 * static_cast<std::uint64_t>(kLocalDelay / 1us) / 1'000'000);
      port.suspect.store(0, std::memory_order_relaxed);
      up_ |= port_bit(command.port);
      break;
    }
    case Kind::detach:
      return begin_drain(command.port, command.drain);
    case Kind::publish:
      if (snapshot_ != nullptr) retired_.push(snapshot_);
      snapshot_ = command.snapshot;
      state_ = snapshot_->state.get();
      windows_.prepare(*state_);
      break;
    case Kind::begin:
      player_.begin(*command.measurement);
      break;
    case Kind::stop:
      stopping_ = true;
      break;
  }
  if (command.wait) done_.release();
}

void DataThread::signal_event() {
  set_event(event_);
}

// --- ports ----------------------------------------------------------------------------------------------

/// The port's last queue pair is destroyed, so what it did not give back is free.
void DataThread::take_back(PortIndex port) {
  for (Slot slot = 0; slot < slots_.size(); ++slot)
    if (slots_[slot].posted_on == port) give(slot);
}

bool DataThread::poll_port(PortIndex index) {
  Port& port = port_at(index);
  std::array<ibv_wc, kCompletionBatch> completions;
  const int count = ibv_poll_cq(port.queues.cq, completions.size(), completions.data());
  if (count <= 0) return false;
  std::array<Slot, kCompletionBatch> refill;
  std::size_t refills = 0;
  ibv_wc_status failure = IBV_WC_SUCCESS;
  for (int i = 0; i < count; ++i) {
    const ibv_wc& completion = completions[i];
    if (completion.wr_id >> 48 != port.attachment) continue;  // of an earlier queue pair
    const auto low = static_cast<std::uint32_t>(completion.wr_id);
    if (completion.status != IBV_WC_SUCCESS && failure == IBV_WC_SUCCESS) failure = completion.status;
    if ((completion.wr_id & kReceiveBit) == 0) {
      if (completion.status != IBV_WC_SUCCESS) continue;  // stays in the queue, which is turned below
      port.queue.complete(low, [&](Outgoing outgoing) {
        port.counters[PortCounter::sent_frames].add();
        port.counters[PortCounter::sent_bytes].add(outgoing.length);
        give(outgoing.slot);
      });
      continue;
    }
    --port.receives;
    slots_[low].posted_on = kNoPort;
    if (completion.status != IBV_WC_SUCCESS) {
      give(low);
      continue;
    }
    port.counters[PortCounter::received_frames].add();
    port.counters[PortCounter::received_bytes].add(completion.byte_len);
    // The receive queue gets a buffer for the one that it gave, or the same one back.
    const Slot fresh = arena_.take();
    if (fresh != kNoSlot) {
      refill[refills++] = fresh;
      received(index, low, completion.byte_len);
    } else {
      refill[refills++] = low;
      counters_[HostCounter::drop_no_buffer].add();
    }
  }
  if (refills > 0) {
    const bool wanted = port.state == Port::State::prepared || port.state == Port::State::attached;
    if (wanted && failure == IBV_WC_SUCCESS) {
      post_receives(port, index, refill.data(), refills);
    } else {
      for (std::size_t i = 0; i < refills; ++i) give(refill[i]);
    }
  }
  if (failure != IBV_WC_SUCCESS && port.state == Port::State::attached) fail(index, failure);
  return true;
}

void DataThread::post_receives(Port& port, PortIndex index, const Slot* slots, std::size_t count) {
  std::array<ibv_sge, kCompletionBatch> sges;
  std::array<ibv_recv_wr, kCompletionBatch> requests;
  for (std::size_t i = 0; i < count; ++i) {
    sges[i] = {reinterpret_cast<std::uintptr_t>(arena_.data(slots[i])), BufferArena::kSlotSize,
               port.queues.lkey};
    requests[i] = {receive_id(port.attachment, slots[i]), i + 1 < count ? &requests[i + 1] : nullptr,
                   &sges[i], 1};
    slots_[slots[i]].posted_on = index;
    slots_[slots[i]].clear_to = 0;
  }
  port.receives += static_cast<unsigned>(count);
  ibv_recv_wr* bad = nullptr;
  if (ibv_post_recv(port.qp, requests.data(), &bad) == 0) return;
  for (; bad != nullptr; bad = bad->next) {  // refused: the queue pair is in the wrong state
    give(static_cast<Slot>(bad->wr_id));
    --port.receives;
  }
}

void DataThread::received(PortIndex index, Slot slot, std::uint32_t length) {
  slots_[slot].length = length;
  slots_[slot].ingress = index;
  const std::span<std::byte> frame = arena_.bytes(slot).first(length);
  const auto header = FrameHeader::decode(frame);
  if (!header) return drop(slot, HostCounter::drop_malformed);
  const Decision decision = decide_received(*state_, up_, *header);
  switch (decision.verdict) {
    case Decision::Verdict::deliver:
      return deliver(index, slot, length, *header);
    case Decision::Verdict::send:
      decrement_hop_limit(frame);
      if (decision.turn) {
        turn(frame);
        counters_[HostCounter::frames_turned].add();
      }
      if (enqueue(decision.egress, slot, length)) counters_[HostCounter::frames_relayed].add();
      return;
    case Decision::Verdict::answer:
      return player_.answer_hop_limit(slot, length - FrameHeader::kSize, *header, index);
    case Decision::Verdict::drop:
      return drop(slot, decision.reason);
  }
}

bool DataThread::enqueue(PortIndex egress, Slot slot, std::uint32_t length) {
  Port& port = port_at(egress);
  if (port.queue.size() >= limits_.transit) {
    drop(slot, HostCounter::drop_egress_full);
    return false;
  }
  port.queue.push({slot, length});
  if (above_local_limit(port)) crowded_ |= port_bit(egress);
  return true;
}

void DataThread::flush_all() {
  for (unsigned i = 0; i < kMaxPorts; ++i)
    if (ports_[i]->state == Port::State::attached) flush(port_index(i));
}

void DataThread::flush(PortIndex index) {
  Port& port = port_at(index);
  EgressQueue& queue = port.queue;
  const std::uint64_t size = queue.size();
  port.counters[PortCounter::queued].set(size);
  if (size > port.counters[PortCounter::queued_most].get()) port.counters[PortCounter::queued_most].set(size);
  while (queue.waiting() > 0 && queue.posted() < kSendDepth) {
    const std::uint32_t count = std::min({queue.waiting(), kSendDepth - queue.posted(), kSendBatch});
    std::array<ibv_sge, kSendBatch> sges;
    std::array<ibv_send_wr, kSendBatch> requests{};
    for (std::uint32_t i = 0; i < count; ++i) {
      const Outgoing& outgoing = queue.peek(i);
      sges[i] = {reinterpret_cast<std::uintptr_t>(arena_.data(outgoing.slot)), outgoing.length,
                 port.queues.lkey};
      requests[i].wr_id = send_id(port.attachment, queue.number(i));
      requests[i].next = i + 1 < count ? &requests[i + 1] : nullptr;
      requests[i].sg_list = &sges[i];
      requests[i].num_sge = 1;
      requests[i].opcode = IBV_WR_SEND;
      if (++port.unsignaled >= kSignalEvery || i + 1 == count) {
        requests[i].send_flags = IBV_SEND_SIGNALED;
        port.unsignaled = 0;
      }
    }
    ibv_send_wr* bad = nullptr;
    if (ibv_post_send(port.qp, requests.data(), &bad) != 0) return fail(index, IBV_WC_GENERAL_ERR);
    queue.mark_posted(count);
  }
  if (above_local_limit(port))
    crowded_ |= port_bit(index);
  else
    crowded_ &= ~port_bit(index);
}

bool DataThread::above_local_limit(const Port& port) const {
  return port.queue.size() >= limits_.local || port.queue.bytes() >= port.local_bytes;
}

void DataThread::fail(PortIndex index, ibv_wc_status status) {
  Port& port = port_at(index);
  port.state = Port::State::failed;
  counters_[HostCounter::port_errors].add();
  turn_queue(index);
  port.suspect.store(status, std::memory_order_release);
  signal_event();
}

void DataThread::turn_queue(PortIndex index) {
  up_ &= ~port_bit(index);
  crowded_ &= ~port_bit(index);
  Port& port = port_at(index);
  port.queue.drain([&](Outgoing outgoing, bool was_posted) {
    const std::span<std::byte> frame = arena_.bytes(outgoing.slot);
    const Decision decision = decide_egress(*state_, up_, destination_of(frame), is_turned(frame));
    if (decision.verdict != Decision::Verdict::send) return drop(outgoing.slot, decision.reason);
    if (decision.turn) {
      turn(frame);
      counters_[HostCounter::frames_turned].add();
    }
    if (was_posted) counters_[HostCounter::frames_resent].add();
    port_at(decision.egress).queue.push(outgoing);  // whatever its length: nothing is lost here
  });
  port.counters[PortCounter::queued].set(0);
}

void DataThread::begin_drain(PortIndex index, Duration limit) {
  Port& port = port_at(index);
  if (port.state == Port::State::idle) return done_.release();
  const bool was_attached = port.state == Port::State::attached;
  port.state = Port::State::draining;
  while (poll_port(index)) {
  }  // what has succeeded so far has succeeded
  if (was_attached) turn_queue(index);
  port.drain_until = now() + limit;
}

void DataThread::finish_drain(PortIndex index) {
  Port& port = port_at(index);
  if (port.receives > 0) counters_[HostCounter::undrained].add();  // freed by the next prepare()
  port.state = Port::State::idle;
  port.qp = nullptr;
  ++port.attachment;  // whatever is still to come is stale
  done_.release();
}

// --- this host's traffic --------------------------------------------------------------------------------

bool DataThread::tun_paused() const {
  return tun_failed_ || crowded_ != 0 || arena_.available() <= limits_.reserve;
}

bool DataThread::read_tun() {
  if (tun_rest_ > 0) {
    --tun_rest_;
    return false;
  }
  for (unsigned i = 0; i < kTunBatch; ++i) {
    const bool paused = tun_paused();
    if (paused && !was_paused_) counters_[HostCounter::local_pauses].add();
    was_paused_ = paused;
    if (paused) return i > 0;
    const Slot slot = arena_.take();
    const long length = tun_.read(arena_.bytes(slot).subspan(FrameHeader::kSize));
    if (length <= 0) {
      give(slot);
      if (length != -EAGAIN && length != -EINTR) {  // somebody has removed the device
        counters_[HostCounter::tun_failures].add();
        tun_failed_ = true;
      }
      tun_rest_ = kTunRest;
      return i > 0;
    }
    slots_[slot].clear_to = 0;
    take_packet(slot, static_cast<std::size_t>(length));
  }
  return true;
}

void DataThread::take_packet(Slot slot, std::size_t length) {
  if (length <= kVirtioHeader) return drop(slot, HostCounter::drop_not_ip);
  const std::span<const std::byte> packet = arena_.bytes(slot).subspan(kPacketOffset, length - kVirtioHeader);
  counters_[HostCounter::tun_read_packets].add();
  counters_[HostCounter::tun_read_bytes].add(packet.size());
  const PacketSummary summary = summarize(packet);
  if (summary.kind == PacketSummary::Kind::not_ip) return drop(slot, HostCounter::drop_not_ip);
  if (summary.kind == PacketSummary::Kind::multicast) return drop(slot, HostCounter::drop_multicast);
  const HostIndex host = snapshot_ != nullptr ? snapshot_->prefixes.lookup(summary.destination) : kNoHost;
  if (host == kNoHost) return refuse(slot, packet, HostCounter::drop_no_route);
  if (host == state_->self) return refuse(slot, packet, HostCounter::drop_to_self);
  const routing::HostRoute* route = this->route(host);
  if (route == nullptr || !route->reachable) return refuse(slot, packet, HostCounter::drop_unreachable);
  FrameHeader header;
  const auto lanes = std::min<std::size_t>(route->lanes.size(), kTrafficLanes);
  header.lane = static_cast<std::uint8_t>(lanes == 0 ? 0 : summary.flow_hash % lanes);
  header.destination = routing::lid_of(host, lanes == 0 ? 0 : route->lanes[header.lane]);
  header.hop_limit = 255;
  header.kind = FrameClass::packet;
  header.flow_hash = summary.flow_hash;
  send_frame(slot, static_cast<std::uint32_t>(FrameHeader::kSize + length), header);
}

/// Completes the header (source, epoch, sequence) and queues the frame.
bool DataThread::send_frame(Slot slot, std::uint32_t length, FrameHeader header) {
  const Decision decision = decide_egress(*state_, up_, header.destination, false);
  if (decision.verdict != Decision::Verdict::send) {
    drop(slot, decision.reason);
    return false;
  }
  const HostIndex host = routing::host_of(header.destination);
  const unsigned way = routing::way_of(header.destination);
  LaneState& lane = lanes_[host.value() * kLanes + header.lane];
  if (lane.way != way) {
    lane.way = way;
    lane.steered_until = now() + reorder_;
  }
  if (lane.steered_until != TimePoint{}) {
    if (now() < lane.steered_until)
      header.flags |= FrameHeader::kSteered;
    else
      lane.steered_until = TimePoint{};
  }
  header.source = routing::lid_of(state_->self, 0);
  header.epoch = epoch_;
  header.sequence = lane.sequence++;
  const std::span<std::byte> frame = arena_.bytes(slot);
  header.encode(frame.first<FrameHeader::kSize>());
  if (decision.turn) {
    turn(frame);
    counters_[HostCounter::frames_turned].add();
  }
  return enqueue(decision.egress, slot, length);
}

/// Drops a local packet and tells its sender.
void DataThread::refuse(Slot slot, std::span<const std::byte> packet, HostCounter reason) {
  const TimePoint time = now();
  if (time - unreachable_refill_ >= kUnreachableInterval) {
    const auto earned = (time - unreachable_refill_) / kUnreachableInterval;
    unreachable_tokens_ = static_cast<unsigned>(std::min<std::int64_t>(
        unreachable_tokens_ + std::min<std::int64_t>(earned, kUnreachableBurst), kUnreachableBurst));
    unreachable_refill_ = time;
  }
  if (unreachable_tokens_ > 0) {
    std::array<std::byte, kVirtioHeader + 1280> message{};
    const std::size_t length = build_unreachable(packet, std::span(message).subspan(kVirtioHeader));
    if (length > 0) {
      --unreachable_tokens_;
      if (tun_.write(std::span(message).first(kVirtioHeader + length)) == 0)
        counters_[HostCounter::unreachable_sent].add();
    }
  }
  drop(slot, reason);
}

void DataThread::deliver(PortIndex ingress, Slot slot, std::uint32_t length, const FrameHeader& header) {
  slots_[slot].ingress = ingress;
  slots_[slot].length = length;
  switch (windows_.accept(now(), header, slot, [this](Slot due) { hand_over(due); })) {
    case routing::SequenceWindows::Verdict::delivered:
    case routing::SequenceWindows::Verdict::held:
      return;
    case routing::SequenceWindows::Verdict::duplicate:
      return drop(slot, HostCounter::drop_duplicate);
    case routing::SequenceWindows::Verdict::stale:
      return drop(slot, HostCounter::drop_late);
    case routing::SequenceWindows::Verdict::unknown:
      return drop(slot, HostCounter::drop_unknown_source);
  }
}

void DataThread::hand_over(Slot slot) {
  const SlotFacts& facts = slots_[slot];
  const std::span<const std::byte> frame = arena_.bytes(slot).first(facts.length);
  const FrameHeader header = *FrameHeader::decode(frame);  // has been decoded before
  const auto body = frame.subspan(FrameHeader::kSize);
  switch (header.kind) {
    case FrameClass::packet:
      if (body.size() <= kVirtioHeader || tun_.write(body) != 0)
        return drop(slot, HostCounter::drop_tun_write);
      counters_[HostCounter::tun_written_packets].add();
      counters_[HostCounter::tun_written_bytes].add(body.size() - kVirtioHeader);
      return give(slot);
    case FrameClass::echo:
      return player_.take_echo(slot, static_cast<std::uint32_t>(body.size()), header, facts.ingress);
    case FrameClass::stream:
      player_.count_stream(body, header);
      return give(slot);
  }
}

void DataThread::drop(Slot slot, HostCounter reason) {
  counters_[reason].add();
  give(slot);
}

const routing::HostRoute* DataThread::route(HostIndex host) const {
  return host.value() < state_->hosts.size() ? &state_->hosts[host.value()] : nullptr;
}

// --- Outlet ---------------------------------------------------------------------------------------------

TimePoint DataThread::now() const {
  return TimePoint(std::chrono::steady_clock::now().time_since_epoch());
}

HostIndex DataThread::self() const {
  return state_->self;
}

std::optional<unsigned> DataThread::way_to(HostIndex host) const {
  const routing::HostRoute* route = this->route(host);
  if (route == nullptr || !route->reachable) return std::nullopt;
  return route->lanes.empty() ? 0 : route->lanes[0];
}

Slot DataThread::take_local() {
  return arena_.available() > limits_.reserve ? arena_.take() : kNoSlot;
}

void DataThread::give(Slot slot) {
  slots_[slot].posted_on = kNoPort;
  arena_.give(slot);
}

std::span<std::byte> DataThread::payload(Slot slot) {
  return arena_.bytes(slot).subspan(FrameHeader::kSize);
}

void DataThread::clear_payload(Slot slot, std::uint32_t used, std::uint32_t size) {
  // A stream keeps using the same few buffers: once cleared they stay so, but for the headers in front.
  std::uint32_t& clear_to = slots_[slot].clear_to;
  const std::span<std::byte> bytes = payload(slot);
  const std::uint32_t dirty = std::min<std::uint32_t>(size, Echo::kReportSize);
  if (used < dirty) std::fill(bytes.begin() + used, bytes.begin() + dirty, std::byte{0});
  if (clear_to < size) {
    std::fill(bytes.begin() + std::max(used, clear_to), bytes.begin() + size, std::byte{0});
    clear_to = size;
  }
}

bool DataThread::send(Slot slot, const Frame& frame) {
  FrameHeader header;
  header.flags = frame.flags;
  header.hop_limit = frame.hop_limit;
  header.destination = routing::lid_of(frame.destination, frame.way);
  header.kind = frame.kind;
  header.lane = static_cast<std::uint8_t>(kMeasurementLane + frame.way);
  return send_frame(slot, static_cast<std::uint32_t>(FrameHeader::kSize + frame.payload), header);
}

bool DataThread::crowded(HostIndex host, unsigned way) const {
  const Decision decision = decide_egress(*state_, up_, routing::lid_of(host, way), false);
  return decision.verdict == Decision::Verdict::send && above_local_limit(port_at(decision.egress));
}

void DataThread::report(std::uint32_t session, const EchoReply& reply) {
  replies_.push({session, reply});  // where the control thread sleeps so long, people do not watch either
  signal_event();
}

void DataThread::finished(Measurement& measurement) {
  measurement.done.store(true, std::memory_order_release);
  signal_event();
}

}  // namespace fabric::daemon
