// The requester: send queues, acknowledgements, retries.
//
// ibv_post_send delivers at once, in the caller's thread. A delivered request is in flight until its
// acknowledgement "arrives": when the program next looks at the completion queue, when the queue is armed, or
// when too many are in flight. If the cable has died in between, an arbitrary part of the acknowledgements is
// lost with it: the receiver has those messages, the sender does not know. They stay in the queue and are
// sent again when the timer expires (4.096 us * 2^timeout; InfiniBand Architecture Specification 9.7.6.1.3),
// which a responder that has them already merely acknowledges again (9.7.5.1.2), until the retries are used
// up.
#include <sched.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <type_traits>

#include "verbs/softhca/objects.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint32_t kFlightWindow = 64;  ///< requests delivered and not yet looked at
constexpr std::uint32_t kPsnMask = 0xFFFFFF;
constexpr std::uint32_t kMaxMessage = 1U << 30;

/// InfiniBand Architecture Specification table 45: RNR NAK timer field, in units of 10 us.
constexpr std::array<std::uint32_t, 32> kRnrTimer = {
    65536, 1,   2,   3,   4,    6,    8,    12,   16,   24,   32,   48,    64,    96,    128,   192,
    256,   384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}
Engine::Time as_time(std::uint64_t ns) {
  return Engine::Time(std::chrono::nanoseconds(static_cast<std::int64_t>(ns)));
}

std::uint8_t completion_opcode(std::uint8_t opcode) {
  switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
      return IBV_WC_RDMA_WRITE;
    case IBV_WR_RDMA_READ:
      return IBV_WC_RDMA_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
      return IBV_WC_COMP_SWAP;
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return IBV_WC_FETCH_ADD;
    case IBV_WR_BIND_MW:
      return IBV_WC_BIND_MW;
    case IBV_WR_LOCAL_INV:
      return IBV_WC_LOCAL_INV;
    default:
      return IBV_WC_SEND;
  }
}

bool opcode_allowed(ibv_qp_type type, std::underlying_type_t<ibv_wr_opcode> opcode) {
  switch (opcode) {
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
      return true;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
    case IBV_WR_SEND_WITH_INV:
    case IBV_WR_BIND_MW:
    case IBV_WR_LOCAL_INV:
      return type != IBV_QPT_UD;
    case IBV_WR_RDMA_READ:
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return type == IBV_QPT_RC;
    default:
      return false;
  }
}

bool brings_data_back(std::uint8_t opcode) {
  return opcode == IBV_WR_RDMA_READ || opcode == IBV_WR_ATOMIC_CMP_AND_SWP ||
         opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
}

/// Nothing goes over the wire.
bool manages_memory(std::uint8_t opcode) {
  return opcode == IBV_WR_BIND_MW || opcode == IBV_WR_LOCAL_INV;
}

/// What a cable adds to the time that the machine takes.
struct CableTiming {
  std::uint64_t delay_out = 0, delay_back = 0, rate = 0;
  std::uint32_t loss_out = 0, loss_back = 0;
  std::uint32_t corrupt_out = 0, corrupt_back = 0;
  std::uint32_t peer = kNoSharedPort;
  [[nodiscard]] bool plain() const {
    return (delay_out | delay_back | rate | loss_out | loss_back | corrupt_out | corrupt_back) == 0;
  }
};

CableTiming timing_of(const Lab& lab, const SharedQp& qp) {
  const SharedPort& own = lab.port(qp.port);
  CableTiming timing{.delay_out = own.delay_ns.load(std::memory_order_relaxed),
                     .rate = own.rate_limit.load(std::memory_order_relaxed),
                     .loss_out = own.loss_ppm.load(std::memory_order_relaxed),
                     .corrupt_out = own.corrupt_ppm.load(std::memory_order_relaxed),
                     .peer = own.peer.load(std::memory_order_relaxed)};
  if (timing.peer != kNoSharedPort) {
    const SharedPort& peer = lab.port(timing.peer);
    timing.delay_back = peer.delay_ns.load(std::memory_order_relaxed);
    timing.loss_back = peer.loss_ppm.load(std::memory_order_relaxed);
    timing.corrupt_back = peer.corrupt_ppm.load(std::memory_order_relaxed);
  }
  return timing;
}

}  // namespace

std::uint64_t QueuePair::random() {
  // SplitMix64.
  chance += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = chance;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// ---- Posting ----

int QueuePair::post_send(ibv_send_wr* wr, ibv_send_wr** bad) {
  std::lock_guard lock(mutex);
  int error = 0;
  for (; wr != nullptr; wr = wr->next) {
    error = append(*wr);
    if (error != 0) {
      *bad = wr;
      break;
    }
  }
  advance();
  return error;
}

int QueuePair::post_batch(ibv_send_wr* wr) {
  std::lock_guard lock(mutex);
  const std::uint32_t tail_before = tail, psn_before = next_psn;
  for (; wr != nullptr; wr = wr->next) {
    if (const int error = append(*wr)) {
      tail = tail_before;
      next_psn = psn_before;
      return error;
    }
  }
  advance();
  return 0;
}

int QueuePair::append(const ibv_send_wr& wr) {
  const ibv_qp_state now = state();
  if (now == IBV_QPS_RESET || now == IBV_QPS_INIT || now == IBV_QPS_RTR) return EINVAL;
  if (tail - freed.load(std::memory_order_acquire) >= created.cap.max_send_wr) return ENOMEM;
  const auto type = created.qp_type;
  // A program may pass what is no value of the enumeration.
  std::underlying_type_t<ibv_wr_opcode> opcode = 0;
  std::memcpy(&opcode, &wr.opcode, sizeof opcode);
  if (!opcode_allowed(type, opcode)) return EINVAL;
  if (wr.num_sge < 0 || static_cast<std::uint32_t>(wr.num_sge) > created.cap.max_send_sge) return EINVAL;

  const std::uint32_t slot = tail & (slots - 1);
  SendWqe& wqe = send_queue[slot];
  wqe.wr_id = wr.wr_id;
  wqe.opcode = static_cast<std::uint8_t>(opcode);
  wqe.signaled = created.sq_sig_all != 0 || (wr.send_flags & IBV_SEND_SIGNALED) != 0;
  wqe.solicited = (wr.send_flags & IBV_SEND_SOLICITED) != 0;
  wqe.inlined = (wr.send_flags & IBV_SEND_INLINE) != 0 && !brings_data_back(wqe.opcode);
  wqe.imm_data = wr.imm_data;
  wqe.arrives = 0;
  wqe.managed = false;
  wqe.sges = manages_memory(wqe.opcode) ? 0 : static_cast<std::uint32_t>(wr.num_sge);
  std::uint64_t length = 0;
  SharedSge* sges = send_sges.data() + std::size_t{slot} * created.cap.max_send_sge;
  for (std::uint32_t i = 0; i < wqe.sges; ++i) {
    sges[i] = {wr.sg_list[i].addr, wr.sg_list[i].length, wr.sg_list[i].lkey};
    length += wr.sg_list[i].length;
  }
  if (wqe.inlined) {
    if (length > created.cap.max_inline_data) return EINVAL;
    std::byte* data = send_inline.data() + std::size_t{slot} * created.cap.max_inline_data;
    for (std::uint32_t i = 0; i < wqe.sges; ++i) {
      if (sges[i].length == 0) continue;
      std::memcpy(data, reinterpret_cast<const void*>(sges[i].address), sges[i].length);
      data += sges[i].length;
    }
  }
  if (length > 0xFFFFFFFF) return EINVAL;
  wqe.length = static_cast<std::uint32_t>(length);
  switch (wqe.opcode) {
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      if (length != 8 || wqe.sges != 1) return EINVAL;
      wqe.remote_address = wr.wr.atomic.remote_addr;
      wqe.rkey = wr.wr.atomic.rkey;
      wqe.compare_add = wr.wr.atomic.compare_add;
      wqe.swap = wr.wr.atomic.swap;
      break;
    case IBV_WR_BIND_MW: {
      constexpr unsigned kKnown =
          IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_ZERO_BASED;
      const ibv_mw_bind_info& info = wr.bind_mw.bind_info;
      if (wr.bind_mw.mw == nullptr || (info.mr == nullptr && info.length != 0) ||
          (info.mw_access_flags & ~kKnown) != 0)
        return EINVAL;
      bindings[slot] = {
          .address = info.addr,
          .length = info.length,
          .window = reinterpret_cast<const MemoryWindow*>(wr.bind_mw.mw)->index,
          .region = info.mr == nullptr ? 0 : reinterpret_cast<const MemoryRegion*>(info.mr)->index,
          .region_key = info.mr == nullptr ? 0 : info.mr->lkey,
          .new_key = wr.bind_mw.rkey,
          .access = info.mw_access_flags};
      break;
    }
    default:
      wqe.remote_address = wr.wr.rdma.remote_addr;
      wqe.rkey = wr.wr.rdma.rkey;
      break;
  }
  if (type == IBV_QPT_UD) {
    if (wr.wr.ud.ah == nullptr) return EINVAL;
    send_routes[slot] = reinterpret_cast<const AddressHandle*>(wr.wr.ud.ah)->route;
    wqe.remote_qpn = wr.wr.ud.remote_qpn;
    // The top bit asks for the Q_Key of the queue pair itself (10.2.5).
    wqe.remote_qkey = (wr.wr.ud.remote_qkey & 0x80000000) != 0 ? shared->qkey : wr.wr.ud.remote_qkey;
    wqe.packets = 1;
  } else {
    const std::uint32_t mtu = 128U << attributes.path_mtu;
    wqe.packets = std::max<std::uint32_t>(1, (wqe.length + mtu - 1) / mtu);
  }
  if (manages_memory(wqe.opcode)) wqe.packets = 0;
  wqe.psn = next_psn;
  next_psn = (next_psn + wqe.packets) & kPsnMask;
  ++tail;
  return 0;
}

// ---- Delivering ----

void QueuePair::advance() {
  if (stands_still()) return;
  const ibv_qp_state now = state();
  if (now == IBV_QPS_ERR || now == IBV_QPS_SQE) {
    flush();
    return;
  }
  if (now == IBV_QPS_RTS && waiting == Waiting::no) {
    launch();
    while (next != tail && transmit()) {
    }
  }
  if (acked == next) return;
  if (next - acked >= kFlightWindow || send_cq->shared->armed.load(std::memory_order_relaxed) != 0 ||
      send_queue[acked & (slots - 1)].arrives != 0) {
    settle();
  } else if (!pending) {
    pending = true;
    {
      std::lock_guard lock(send_cq->pending_mutex);
      send_cq->pending.push_back(this);
      send_cq->pending_count.store(static_cast<std::uint32_t>(send_cq->pending.size()),
                                   std::memory_order_seq_cst);
    }
    // Whoever armed the queue meanwhile may not have seen that something is pending.
    if (send_cq->shared->armed.load(std::memory_order_seq_cst) != 0) settle();
  }
}

/// Cables with faults: when each request will have arrived. What stays in the port is on no cable.
void QueuePair::launch() {
  if (launched == tail) return;
  const CableTiming timing = timing_of(process->lab, *shared);
  if (timing.plain()) {
    launched = tail;
    return;
  }
  if (acked == next) flight_epoch = process->wire.epoch(*shared);
  for (; launched != tail; ++launched) {
    const std::uint32_t slot = launched & (slots - 1);
    SendWqe& wqe = send_queue[slot];
    if (process->wire.loops_back(*shared,
                                 created.qp_type == IBV_QPT_UD ? send_routes[slot].dlid : shared->peer_lid))
      continue;
    std::uint64_t leaves = now_ns();
    if (timing.rate != 0) {
      auto& busy = process->lab.header().transmitters[shared->port].busy_until;
      const std::uint64_t bits = (std::uint64_t{wqe.length} + 30ULL * wqe.packets) * 8;
      const std::uint64_t takes = bits * 1'000'000'000 / timing.rate;
      std::uint64_t before = busy.load(std::memory_order_relaxed);
      do leaves = std::max(before, now_ns()) + takes;
      while (!busy.compare_exchange_weak(before, leaves, std::memory_order_relaxed));
    }
    wqe.arrives = std::max<std::uint64_t>(1, leaves + timing.delay_out);
  }
}

bool QueuePair::gather(const SendWqe& wqe, std::uint32_t slot, Message& message, ibv_wc_status& error) {
  if (wqe.inlined) {
    message.pieces = wqe.length == 0 ? 0 : 1;
    message.local[0] = {send_inline.data() + std::size_t{slot} * created.cap.max_inline_data, wqe.length};
    return true;
  }
  const std::uint32_t access = brings_data_back(wqe.opcode) ? IBV_ACCESS_LOCAL_WRITE : 0;
  const SharedSge* sges = send_sges.data() + std::size_t{slot} * created.cap.max_send_sge;
  message.pieces = 0;
  for (std::uint32_t i = 0; i < wqe.sges; ++i) {
    if (sges[i].length == 0) continue;
    const SharedMr* mr = process->wire.find_memory(process->seat, sges[i].lkey, shared->pd, access,
                                                   sges[i].address, sges[i].length);
    if (mr == nullptr || mr->window_type != 0) {
      error = IBV_WC_LOC_PROT_ERR;
      return false;
    }
    message.local[message.pieces++] = {reinterpret_cast<void*>(mr->address + (sges[i].address - mr->iova)),
                                       sges[i].length};
  }
  return true;
}

ibv_wc_status QueuePair::bind_window(const WindowBinding& binding) {
  SharedMr& window = process->arena.mrs[binding.window];
  const SharedMr& region = process->arena.mrs[binding.region];
  const std::uint32_t key = window.key.load(std::memory_order_relaxed);
  const bool names_window =
      key_seat(binding.new_key) == process->seat && key_index(binding.new_key) == binding.window;
  // A window of type 2 is invalidated before it is bound again (10.6.7.2.1).
  if (window.pd != shared->pd || !names_window || (window.window_type == IBV_MW_TYPE_2 && key != 0))
    return IBV_WC_MW_BIND_ERR;
  if (binding.length != 0) {
    constexpr std::uint32_t kWriting = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
    if (region.key.load(std::memory_order_relaxed) != binding.region_key || region.window_type != 0 ||
        region.pd != shared->pd || (region.access & IBV_ACCESS_MW_BIND) == 0 ||
        ((binding.access & kWriting) != 0 && (region.access & IBV_ACCESS_LOCAL_WRITE) == 0) ||
        binding.address < region.iova || binding.length > region.length ||
        binding.address - region.iova > region.length - binding.length)
      return IBV_WC_MW_BIND_ERR;
  }
  if (key != 0) {
    window.key.store(0, std::memory_order_seq_cst);
    quiesce(*process);
  }
  if (binding.length == 0) return IBV_WC_SUCCESS;
  window.access = binding.access;
  window.qp_num = window.window_type == IBV_MW_TYPE_2 ? number() : 0;
  window.iova = (binding.access & IBV_ACCESS_ZERO_BASED) != 0 ? 0 : binding.address;
  window.length = binding.length;
  window.address = region.address + (binding.address - region.iova);
  window.shared_begin = region.shared_begin;
  window.shared_end = region.shared_end;
  window.region = binding.region;
  window.key.store(binding.new_key, std::memory_order_release);
  return IBV_WC_SUCCESS;
}

ibv_wc_status QueuePair::manage_memory(const SendWqe& wqe, std::uint32_t slot) {
  if (wqe.opcode == IBV_WR_BIND_MW) return bind_window(bindings[slot]);
  const std::uint32_t key = wqe.imm_data;
  SharedMr& window = process->arena.mrs[key_index(key)];
  if (key == 0 || key_seat(key) != process->seat || window.key.load(std::memory_order_relaxed) != key ||
      window.window_type != IBV_MW_TYPE_2 || window.qp_num != number())
    return IBV_WC_MW_BIND_ERR;
  window.key.store(0, std::memory_order_seq_cst);
  quiesce(*process);
  return IBV_WC_SUCCESS;
}

bool QueuePair::transmit() {
  const std::uint32_t slot = next & (slots - 1);
  SendWqe& wqe = send_queue[slot];
  Wire& wire = process->wire;
  const bool reliable = created.qp_type == IBV_QPT_RC;
  const std::uint64_t epoch = wire.epoch(*shared);
  if (acked == next && wqe.arrives == 0) flight_epoch = epoch;
  const bool cut = epoch != flight_epoch;
  if (cut && reliable) {
    // Whatever was on the cable is gone, of the acknowledgements a part.
    settle();
    if (waiting != Waiting::no || state() != IBV_QPS_RTS) return false;
  }
  const bool lost_on_cable = cut && wqe.arrives != 0;
  if (wqe.arrives != 0 && !lost_on_cable && now_ns() < wqe.arrives) {
    process->engine.schedule(timer, as_time(wqe.arrives));
    return false;
  }

  if (manages_memory(wqe.opcode)) {
    if (!wqe.managed) {
      if (const ibv_wc_status status = manage_memory(wqe, slot); status != IBV_WC_SUCCESS) {
        fail_next(status);
        return false;
      }
      wqe.managed = true;  // not again, should requests before it have to be sent again
    }
    ++next;
    return true;
  }

  Message message;
  message.opcode = wqe.opcode;
  message.solicited = wqe.solicited;
  message.psn = wqe.psn;
  message.packets = wqe.packets;
  message.imm_data = wqe.imm_data;
  message.rkey = wqe.rkey;
  message.remote_address = wqe.remote_address;
  message.compare_add = wqe.compare_add;
  message.swap = wqe.swap;
  message.length = wqe.length;
  ibv_wc_status error = IBV_WC_SUCCESS;
  if (!gather(wqe, slot, message, error)) {
    fail_next(error);
    return false;
  }
  if (wqe.length > kMaxMessage) {
    fail_next(IBV_WC_LOC_LEN_ERR);
    return false;
  }

  const CableTiming timing = wqe.arrives == 0 ? CableTiming{} : timing_of(process->lab, *shared);
  const auto is_lost = [&](std::uint32_t ppm) {
    for (std::uint32_t packet = 0; ppm != 0 && packet < wqe.packets; ++packet)
      if (random() % 1'000'000 < ppm) return true;
    return false;
  };
  // A wrong CRC: dropped at the other end, and counted there.
  const auto is_corrupted = [&](std::uint32_t ppm, std::uint32_t at) {
    if (at == kNoSharedPort || !is_lost(ppm)) return false;
    process->lab.port(at).counters.rcv_errors.fetch_add(1, std::memory_order_relaxed);
    return true;
  };
  const bool lost =
      lost_on_cable || is_lost(timing.loss_out) || is_corrupted(timing.corrupt_out, timing.peer);

  if (created.qp_type == IBV_QPT_UD) {
    message.route = &send_routes[slot];
    message.remote_qpn = wqe.remote_qpn;
    message.remote_qkey = wqe.remote_qkey;
    const auto mtu = process->lab.port(shared->port).active_mtu.load(std::memory_order_relaxed);
    if (wqe.length > 128U << mtu) {
      fail_next(IBV_WC_LOC_LEN_ERR);
      return false;
    }
    if (lost)
      wire.lose(*shared, send_routes[slot].dlid, message);
    else
      wire.send_datagram(*shared, number(), message);
    ++next;
    return true;
  }

  Reception reception;
  if (lost)
    wire.lose(*shared, shared->peer_lid, message);
  else
    reception = wire.send(*shared, number(), message);
  if (!reliable) {
    ++next;
    return true;
  }
  if (reception.response == Response::acknowledged &&
      (is_lost(timing.loss_back) || is_corrupted(timing.corrupt_back, shared->port)))
    reception.response = Response::silence;
  switch (reception.response) {
    case Response::acknowledged:
      if (wqe.arrives != 0) wqe.arrives += std::max<std::uint64_t>(1, timing.delay_back);
      ++next;
      return true;
    case Response::silence:
      settle();
      if (waiting == Waiting::no && state() == IBV_QPS_RTS) wait_for(Waiting::for_response, 0);
      return false;
    case Response::receiver_not_ready:
      settle();
      if (waiting == Waiting::no && state() == IBV_QPS_RTS)
        wait_for(Waiting::for_receiver, kRnrTimer[reception.rnr_timer % 32] * 10'000ULL);
      return false;
    case Response::invalid_request:
      fail_next(IBV_WC_REM_INV_REQ_ERR);
      return false;
    case Response::remote_access_error:
      fail_next(IBV_WC_REM_ACCESS_ERR);
      return false;
    case Response::remote_operation_error:
      fail_next(IBV_WC_REM_OP_ERR);
      return false;
  }
  return false;
}

void QueuePair::wait_for(Waiting what, std::uint64_t nanoseconds) {
  waiting = what;
  if (what == Waiting::for_response) {
    // Timeout 0 is "for ever"; then nothing is sent again, and only the end of the queue pair ends it.
    if (attributes.timeout == 0) return;
    nanoseconds = 4096ULL << attributes.timeout;
  }
  process->engine.schedule(timer, as_time(now_ns() + nanoseconds));
}

void QueuePair::Timer::due() {
  std::lock_guard lock(qp->mutex);
  if (qp->stands_still()) return;
  if (qp->state() == IBV_QPS_ERR || qp->state() == IBV_QPS_SQE) {
    qp->flush();
    return;
  }
  switch (qp->waiting) {
    case Waiting::no:
      break;
    case Waiting::for_response:
      qp->waiting = Waiting::no;
      if (qp->retries == 0) {
        qp->next = qp->acked;
        qp->fail_next(IBV_WC_RETRY_EXC_ERR);
        return;
      }
      --qp->retries;
      qp->next = qp->launched = qp->acked;
      qp->flight_epoch = qp->process->wire.epoch(*qp->shared);
      break;
    case Waiting::for_receiver:
      qp->waiting = Waiting::no;
      if (qp->attributes.rnr_retry != 7) {
        if (qp->rnr_retries == 0) {
          qp->next = qp->acked;
          qp->fail_next(IBV_WC_RNR_RETRY_EXC_ERR);
          return;
        }
        --qp->rnr_retries;
      }
      qp->launched = qp->next;
      break;
  }
  qp->advance();
  qp->settle();
}

// ---- Completing ----

void QueuePair::settle() {
  if (acked == next || stands_still()) return;
  const bool reliable = created.qp_type == IBV_QPT_RC;
  std::uint32_t limit = next;
  bool cut = false;
  if (reliable && process->wire.epoch(*shared) != flight_epoch) {
    // The cable has died since these were delivered: any number of the acknowledgements had come through.
    cut = true;
    limit = acked + static_cast<std::uint32_t>(random() % (next - acked + 1));
  }
  std::uint64_t later = 0;
  while (acked != limit) {
    const SendWqe& wqe = send_queue[acked & (slots - 1)];
    if (reliable && wqe.arrives != 0 && !cut && now_ns() < wqe.arrives) {
      later = wqe.arrives;
      break;
    }
    if (wqe.signaled) complete(wqe, acked, IBV_WC_SUCCESS);
    ++acked;
    retries = attributes.retry_cnt;
    rnr_retries = attributes.rnr_retry;
  }
  if (overran) {
    overran = false;
    enter_error();
  } else if (cut) {
    const bool lost = acked != next;
    next = launched = acked;
    if (lost && waiting == Waiting::no) wait_for(Waiting::for_response, 0);
    flight_epoch = process->wire.epoch(*shared);
  } else if (later != 0 && waiting == Waiting::no) {
    const std::uint64_t delivery = next == launched ? later : send_queue[next & (slots - 1)].arrives;
    process->engine.schedule(timer, as_time(std::min(later, delivery)));
  }
}

void QueuePair::complete(const SendWqe& wqe, std::uint32_t request, ibv_wc_status status) {
  const auto pushed = send_cq->queue.load(std::memory_order_acquire)
                          ->push(process->seat,
                                 {.wr_id = wqe.wr_id,
                                  .byte_len = wqe.length,
                                  .qp_num = number(),
                                  .wqe_index = request,
                                  .status = static_cast<std::uint8_t>(status),
                                  .opcode = completion_opcode(wqe.opcode),
                                  .is_send = true},
                                 false);
  if (pushed.wake) process->wire.wake(process->seat, send_cq->index);
  if (pushed.overrun) {
    process->wire.raise(process->seat, shared->hca, IBV_EVENT_CQ_ERR, send_cq->index);
    process->wire.raise(process->seat, shared->hca, IBV_EVENT_QP_FATAL, number());
    overran = true;
  }
}

/// Request `next` has failed: what is before it was acknowledged, what is after it is flushed.
void QueuePair::fail_next(ibv_wc_status status) {
  const std::uint32_t failed = next;
  for (; acked != failed; ++acked)
    if (const SendWqe& wqe = send_queue[acked & (slots - 1)]; wqe.signaled)
      complete(wqe, acked, IBV_WC_SUCCESS);
  ++acked;
  next = launched = acked;
  complete(send_queue[failed & (slots - 1)], failed, status);
  // A local error of an unreliable queue pair stops its send queue only (10.3.1.6).
  enter_error(created.qp_type == IBV_QPT_RC ? IBV_QPS_ERR : IBV_QPS_SQE);
}

void QueuePair::enter_error(ibv_qp_state to) {
  shared->lock.lock(process->seat);
  FlushOutcome outcome;
  const bool already = state() == IBV_QPS_ERR;
  if (!already) shared->state.store(static_cast<std::uint32_t>(to) + 1, std::memory_order_seq_cst);
  if (to == IBV_QPS_ERR)
    outcome = flush_receive_queue(process->lab, process->seat, *shared, number(), process->seat);
  shared->lock.unlock();
  ibv.qp_base.state = state();
  if (outcome.wake) process->wire.wake(process->seat, recv_cq->index);
  if (outcome.overrun) process->wire.raise(process->seat, shared->hca, IBV_EVENT_CQ_ERR, recv_cq->index);
  if (to == IBV_QPS_ERR && !already && shared->srq != kNone)
    process->wire.raise(process->seat, shared->hca, IBV_EVENT_QP_LAST_WQE_REACHED, number());
  flush();
}

/// Everything that is left in the send queue, signaled or not, was not done.
void QueuePair::flush() {
  waiting = Waiting::no;
  const std::uint32_t delivered = next;
  for (; acked != delivered; ++acked)
    if (const SendWqe& wqe = send_queue[acked & (slots - 1)]; wqe.signaled)
      complete(wqe, acked, IBV_WC_SUCCESS);
  while (acked != tail) {
    const std::uint32_t request = acked++;
    next = launched = acked;
    complete(send_queue[request & (slots - 1)], request, IBV_WC_WR_FLUSH_ERR);
  }
}

void QueuePair::reset_send_queue() {
  tail = launched = next = acked = 0;
  freed.store(0, std::memory_order_release);
  waiting = Waiting::no;
}

}  // namespace fabric::softhca
