// A message is a header of 8 bytes (kind 0, one byte of zero, credits returned, length; network byte order)
// and its bytes. Credits: at the start each end may send kReceives - kReserve messages. A receive buffer that
// is posted again is a credit to give back; it travels with the next message, or, when half of them are owed,
// with an empty one. Empty messages take no credit; at most two of them can be on the way at a time (a second
// half cannot be owed before the first has been received and used), and kReserve buffers are kept for them.
#include "verbs/control_channel.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace fabric::verbs {
namespace {

constexpr std::size_t kBuffers = 48;

void put16(std::byte* out, unsigned value) {
  out[0] = std::byte(value >> 8);
  out[1] = std::byte(value);
}
unsigned get16(const std::byte* in) {
  return std::to_integer<unsigned>(in[0]) << 8 | std::to_integer<unsigned>(in[1]);
}

}  // namespace

void ControlChannel::Unmap::operator()(std::byte* memory) const noexcept {
  munmap(memory, kBuffers * kSlot);
}

ControlChannel::ControlChannel(ibv_context* context, ibv_pd* pd, Callbacks callbacks, Duration heartbeat)
    : callbacks_(std::move(callbacks)), heartbeat_(heartbeat) {
  static_assert(kBuffers == kReceives + kSends);
  void* memory = mmap(nullptr, kBuffers * kSlot, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw VerbsError(errno, "mmap of control buffers");
  memory_.reset(static_cast<std::byte*>(memory));
  channel_.reset(checked(ibv_create_comp_channel(context), "ibv_create_comp_channel (control)"));
  set_nonblocking(channel_->fd);
  // Twice what one queue pair can have: what the previous one left may still be in the queue.
  cq_.reset(checked(ibv_create_cq(context, 2 * (kBuffers + 1), nullptr, channel_.get(), 0),
                    "ibv_create_cq (control)"));
  region_.reset(
      checked(ibv_reg_mr(pd, memory, kBuffers * kSlot, IBV_ACCESS_LOCAL_WRITE), "ibv_reg_mr (control)"));
  check(ibv_req_notify_cq(cq_.get(), 0), "ibv_req_notify_cq (control)");
}

ControlChannel::~ControlChannel() = default;

void ControlChannel::fill(CableResources& resources) const {
  resources.control_cq = cq_.get();
  resources.control_cap = {};
  resources.control_cap.max_send_wr = kSends + 1;
  resources.control_cap.max_recv_wr = kReceives;
  resources.control_cap.max_send_sge = resources.control_cap.max_recv_sge = 1;
}

std::uint64_t ControlChannel::work_id(Kind kind, unsigned slot) const {
  return std::uint64_t{attachment_} << 32 | std::uint64_t{static_cast<std::uint8_t>(kind)} << 16 | slot;
}

void ControlChannel::prepare(ibv_qp* qp) {
  detach();
  qp_ = qp;
  ++attachment_;
  failed_ = false;
  credits_ = kReceives - kReserve;
  owed_ = 0;
  free_sends_.resize(kSends);
  for (unsigned i = 0; i < kSends; ++i) free_sends_[i] = static_cast<std::uint8_t>(i);
  for (unsigned i = 0; i < kReceives; ++i) check(post_receive(i), "ibv_post_recv (control)");
}

void ControlChannel::attach(TimePoint now, Duration at_most_every) {
  if (qp_ == nullptr) return;
  attached_ = true;
  interval_ = std::max(heartbeat_, at_most_every);
  active_ = true;
  heartbeat_posted_ = false;
  next_tick_ = now;  // at once: messages may have come before
}

void ControlChannel::detach() {
  if (qp_ == nullptr) return;
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  ibv_modify_qp(qp_, &attributes, IBV_QP_STATE);  // may be in that state or gone bad already: no matter
  qp_ = nullptr;
  attached_ = false;
  queue_.clear();
  next_tick_.reset();
}

int ControlChannel::post_receive(unsigned slot) {
  ibv_sge sge{reinterpret_cast<std::uintptr_t>(receive_slot(slot)), kSlot, region_->lkey};
  ibv_recv_wr request{work_id(Kind::receive, slot), nullptr, &sge, 1};
  ibv_recv_wr* bad = nullptr;
  return ibv_post_recv(qp_, &request, &bad);
}

void ControlChannel::send(std::span<const std::byte> message) {
  if (!attached_ || failed_) return;
  if (message.size() > kMaxMessage) throw VerbsError(EMSGSIZE, "control message");
  if (queue_.size() >= kMaxQueued)
    return fail("completion", "the neighbour does not take its control messages");
  queue_.emplace_back(message.begin(), message.end());
  flush();
}

bool ControlChannel::post_send(std::span<const std::byte> message) {
  const unsigned slot = free_sends_.back();
  std::byte* buffer = send_slot(slot);
  std::memset(buffer, 0, kHeader);
  put16(buffer + 2, owed_);
  put16(buffer + 4, static_cast<unsigned>(message.size()));
  if (!message.empty()) std::memcpy(buffer + kHeader, message.data(), message.size());
  ibv_sge sge{reinterpret_cast<std::uintptr_t>(buffer), static_cast<std::uint32_t>(kHeader + message.size()),
              region_->lkey};
  ibv_send_wr request{};
  request.wr_id = work_id(Kind::send, slot);
  request.sg_list = &sge;
  request.num_sge = 1;
  request.opcode = IBV_WR_SEND;
  request.send_flags = IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  if (const int error = ibv_post_send(qp_, &request, &bad); error != 0) {
    fail("completion", std::string("ibv_post_send: ") + std::strerror(error));
    return false;
  }
  owed_ = 0;
  free_sends_.pop_back();
  return true;
}

void ControlChannel::flush() {
  while (!failed_ && !queue_.empty() && credits_ > 0 && !free_sends_.empty()) {
    if (!post_send(queue_.front())) return;
    --credits_;
    ++counters_.messages_sent;
    counters_.bytes_sent += queue_.front().size();
    queue_.pop_front();
  }
  if (!queue_.empty() && credits_ == 0) ++counters_.waits_for_credit;
  if (!failed_ && owed_ >= (kReceives - kReserve) / 2 && !free_sends_.empty() && post_send({}))
    ++counters_.credits_sent;
}

void ControlChannel::ready() {
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  unsigned events = 0;
  while (ibv_get_cq_event(channel_.get(), &cq, &context) == 0) ++events;
  if (events > 0) ibv_ack_cq_events(cq_.get(), events);
  ibv_req_notify_cq(cq_.get(), 0);
  // Before attach() the completions wait in the queue: nobody above knows the neighbour yet.
  if (attached_ || qp_ == nullptr) poll();
}

void ControlChannel::poll() {
  std::array<ibv_wc, 16> completions;
  const std::uint32_t attachment = attachment_;
  for (int n; (n = ibv_poll_cq(cq_.get(), completions.size(), completions.data())) > 0;)
    for (int i = 0; i < n; ++i) complete(completions[i]);
  if (attached_ && attachment == attachment_) flush();
}

void ControlChannel::complete(const ibv_wc& completion) {
  // What an earlier queue pair left behind, or what comes after a callback has detached.
  if (completion.wr_id >> 32 != attachment_ || !attached_ || failed_) return;
  const auto kind = static_cast<Kind>(completion.wr_id >> 16 & 0xFF);
  const auto slot = static_cast<unsigned>(completion.wr_id & 0xFFFF);
  if (completion.status != IBV_WC_SUCCESS)
    return fail(kind == Kind::heartbeat ? "heartbeat" : "completion", ibv_wc_status_str(completion.status));
  switch (kind) {
    case Kind::receive:
      return take(slot, completion.byte_len);
    case Kind::send:
      active_ = true;  // acknowledged: as good as a heartbeat. What arrives is not: the cable may be one-way
      free_sends_.push_back(static_cast<std::uint8_t>(slot));
      return;
    case Kind::heartbeat:
      heartbeat_posted_ = false;
      return;
  }
}

void ControlChannel::take(unsigned slot, std::size_t length) {
  const std::byte* buffer = receive_slot(slot);
  const std::size_t size = length < kHeader ? 0 : get16(buffer + 4);
  if (length != kHeader + size) return fail("completion", "malformed control message");
  credits_ = std::min(credits_ + get16(buffer + 2), kReceives - kReserve);
  if (size > 0) {
    ++counters_.messages_received;
    counters_.bytes_received += size;
    ++owed_;
    callbacks_.received({buffer + kHeader, size});
    if (!attached_ || failed_) return;  // the callback has detached
  }
  if (const int error = post_receive(slot); error != 0)
    fail("completion", std::string("ibv_post_recv: ") + std::strerror(error));
}

void ControlChannel::tick(TimePoint now) {
  if (!attached_) return;
  poll();
  if (!attached_ || failed_) return;
  if (!active_ && !heartbeat_posted_) {
    ibv_send_wr request{};
    request.wr_id = work_id(Kind::heartbeat, 0);
    request.opcode = IBV_WR_RDMA_WRITE;
    request.send_flags = IBV_SEND_SIGNALED;
    ibv_send_wr* bad = nullptr;
    if (const int error = ibv_post_send(qp_, &request, &bad); error != 0)
      return fail("heartbeat", std::string("ibv_post_send: ") + std::strerror(error));
    heartbeat_posted_ = true;
    ++counters_.heartbeats;
  }
  active_ = false;
  next_tick_ = now + interval_;
}

void ControlChannel::fail(const std::string& detector, const std::string& reason) {
  if (failed_) return;
  failed_ = true;
  next_tick_.reset();
  ++counters_.failures;
  callbacks_.failed(detector, reason);
}

}  // namespace fabric::verbs
