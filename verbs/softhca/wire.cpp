// The responder. Every delivery holds the lock of the destination queue pair from the first look at its state
// to the last write, so that a queue pair sees one message after the other, as from a wire. The order of
// writes is such that whoever cleans up after a sender that dies here (repair_receive_side) finds either
// nothing done or everything done to the queues.
//
// Follows the InfiniBand Architecture Specification, volume 1, release 1.3: 9.7.4 (responder: requests),
// 9.7.5.2.8 (NAK codes), 9.9.3 (responder errors), 10.2.6 (R_Keys), 11.6.2 (completion statuses). Departs
// from it where a message is one step here: a message that fails has changed nothing, whereas on hardware the
// packets before the failing one have arrived; and a lost message is not told by a NAK of the next one, but
// by the requester's timer.
#include "verbs/softhca/wire.hpp"

#include <infiniband/verbs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <system_error>

#include "verbs/softhca/mad_layout.hpp"
#include "verbs/softhca/queues.hpp"
#include "verbs/softhca/session.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint32_t kPsnMask = 0xFFFFFF;
constexpr std::uint32_t kGrhBytes = 40;
constexpr std::uint32_t kFirstMulticastLid = 0xC000;

constexpr std::uint32_t state_word(ibv_qp_state state) {
  return static_cast<std::uint32_t>(state) + 1;
}

bool active(const SharedPort& port) {
  return port.state.load(std::memory_order_acquire) == IBV_PORT_ACTIVE;
}

bool has_lid(const SharedPort& port, std::uint32_t dlid) {
  const std::uint32_t lid = port.lid.load(std::memory_order_relaxed);
  return lid != 0 &&
         dlid >> port.lmc.load(std::memory_order_relaxed) == lid >> port.lmc.load(std::memory_order_relaxed);
}

/// Of a counter that nobody else writes.
void bump(std::atomic<std::uint64_t>& counter, std::uint64_t by) {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

bool carries_immediate(std::uint8_t opcode) {
  return opcode == IBV_WR_SEND_WITH_IMM || opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
}

bool is_read(std::uint8_t opcode) {
  return opcode == IBV_WR_RDMA_READ || opcode == IBV_WR_ATOMIC_CMP_AND_SWP ||
         opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
}

/// What goes out for a message; the request of READ and of an atomic is one packet without payload.
Wire::Sent request_of(const Message& message) {
  if (is_read(message.opcode)) return {8, 1};
  return {message.length + std::uint64_t{8} * message.packets, message.packets};
}

Response response_to(DmaResult result) {
  switch (result) {
    case DmaResult::done:
      return Response::acknowledged;
    case DmaResult::gone:
      return Response::silence;
    case DmaResult::fault:
      return Response::remote_operation_error;
  }
  return Response::silence;
}

/// The 40 bytes in front of a datagram that has a global route.
ibv_grh make_grh(const SharedPort& from, const Message& message) {
  const Route& route = *message.route;
  ibv_grh grh{};
  grh.version_tclass_flow =
      htobe32(6U << 28 | std::uint32_t{route.traffic_class} << 20 | (route.flow_label & 0xFFFFF));
  // BTH, DETH, immediate, payload and ICRC, padded to words.
  grh.paylen = htobe16(static_cast<std::uint16_t>(12 + 8 + (carries_immediate(message.opcode) ? 4 : 0) +
                                                  (message.length + 3) / 4 * 4 + 4));
  grh.next_hdr = 0x1B;
  grh.hop_limit = route.hop_limit;
  const std::uint32_t index = route.sgid_index % kMaxGids;
  grh.sgid.global.subnet_prefix = htobe64(from.gid_prefix.load(std::memory_order_relaxed));
  grh.sgid.global.interface_id = htobe64(from.guids[index].load(std::memory_order_relaxed));
  std::memcpy(grh.dgid.raw, route.dgid.data(), 16);
  return grh;
}

}  // namespace

Wire::Wire(Lab lab, Session& session, std::uint32_t seat)
    : lab_(lab), session_(session), seat_(seat), dma_(lab, session, seat) {}

// ---- The path ----

Wire::Target Wire::route(const SharedQp& from, std::uint32_t dlid) const {
  const SharedPort& own = lab_.port(from.port);
  if (!active(own)) return {};
  if (has_lid(own, dlid)) return {from.port, true};
  if (own.carrier.load(std::memory_order_acquire) == 0) return {};
  const std::uint32_t peer_index = own.peer.load(std::memory_order_acquire);
  if (peer_index == kNoSharedPort) return {};
  const SharedPort& peer = lab_.port(peer_index);
  if (!active(peer) || (!has_lid(peer, dlid) && dlid < kFirstMulticastLid)) return {};
  return {peer_index, peer.carrier.load(std::memory_order_acquire) != 0};
}

bool Wire::loops_back(const SharedQp& from, std::uint32_t dlid) const {
  return has_lid(lab_.port(from.port), dlid);
}

std::uint64_t Wire::epoch(const SharedQp& from) const {
  const SharedPort& own = lab_.port(from.port);
  std::uint64_t epoch = own.carrier_epoch.load(std::memory_order_acquire);
  const std::uint32_t peer = own.peer.load(std::memory_order_acquire);
  if (peer != kNoSharedPort) epoch += lab_.port(peer).carrier_epoch.load(std::memory_order_acquire);
  return epoch;
}

bool Wire::pkey_matches(const SharedQp& from, const SharedQp& to) const {
  const std::uint16_t sent = lab_.port(from.port).pkeys[from.pkey_index].load(std::memory_order_relaxed);
  const std::uint16_t mine = lab_.port(to.port).pkeys[to.pkey_index].load(std::memory_order_relaxed);
  // Same partition, and at least one of the two a full member (10.9.3).
  return (sent & 0x7FFF) != 0 && ((sent ^ mine) & 0x7FFF) == 0 && ((sent | mine) & 0x8000) != 0;
}

SharedQp* Wire::find_qp(std::uint32_t qpn) const {
  const std::uint32_t seat = qp_seat(qpn);
  if (seat == 0 || !lab_.live(seat)) return nullptr;
  SharedQp& qp = lab_.arena(seat).qps[qp_index(qpn)];
  return qp.state.load(std::memory_order_acquire) == 0 ? nullptr : &qp;
}

void Wire::count(SharedQp& from, std::uint32_t to_port, const Message& message) const {
  if (to_port == from.port) return;  // never left the adapter
  Traffic& traffic = from.traffic;
  if (traffic.peer.load(std::memory_order_relaxed) != to_port ||
      traffic.port.load(std::memory_order_relaxed) != from.port) {
    collect_traffic(lab_, seat_, from);
    traffic.port.store(from.port, std::memory_order_relaxed);
    traffic.peer.store(to_port, std::memory_order_relaxed);
  }
  const Sent sent = request_of(message);
  bump(traffic.caused[Traffic::out_octets], sent.octets);
  bump(traffic.caused[Traffic::out_packets], sent.packets);
  if (message.route != nullptr && message.route->dlid >= kFirstMulticastLid)
    bump(traffic.caused[Traffic::out_multicast], message.packets);
}

/// What READ and atomics bring back, to a queue pair whose request has been counted; or what the other port
/// has sent for nothing.
void Wire::count_answer(SharedQp& from, const Target& target, const Message& message) const {
  if (target.port == from.port || !is_read(message.opcode)) return;
  const Sent answer{message.length + std::uint64_t{8} * message.packets, message.packets};
  if (!target.answers) return count_lost(target.port, answer, false);
  bump(from.traffic.caused[Traffic::back_octets], answer.octets);
  bump(from.traffic.caused[Traffic::back_packets], answer.packets);
}

void Wire::lose(const SharedQp& from, std::uint32_t dlid, const Message& message) const {
  if (!active(lab_.port(from.port)) || loops_back(from, dlid)) return;
  count_lost(from.port, request_of(message), message.route != nullptr && dlid >= kFirstMulticastLid);
}

void Wire::count_lost(std::uint32_t from_port, Sent sent, bool multicast) const {
  SharedCounters& counters = lab_.port(from_port).counters;
  counters.xmit_data += sent.octets;
  counters.xmit_packets += sent.packets;
  (multicast ? counters.multicast_xmit_packets : counters.unicast_xmit_packets) += sent.packets;
}

// ---- Memory ----

const SharedMr* Wire::find_memory(std::uint32_t seat, std::uint32_t key, std::uint32_t pd,
                                  std::uint32_t access, std::uint64_t address, std::uint64_t length) const {
  if (key_seat(key) != seat) return nullptr;
  const SharedMr& mr = lab_.arena(seat).mrs[key_index(key)];
  if (mr.key.load(std::memory_order_acquire) != key || key == 0) return nullptr;
  if (mr.pd != pd || (mr.access & access) != access) return nullptr;
  if (address < mr.iova || length > mr.length || address - mr.iova > mr.length - length) return nullptr;
  return &mr;
}

// ---- Connected transports ----

Reception Wire::send(SharedQp& from, std::uint32_t from_qpn, const Message& message) {
  const bool reliable = from.type == IBV_QPT_RC;
  const Target target = route(from, from.peer_lid);
  if (target.port == kNoSharedPort) {
    lose(from, from.peer_lid, message);
    return {};
  }
  count(from, target.port, message);
  SharedQp* to = find_qp(from.peer_qpn);
  if (to == nullptr) return {};

  Delivery delivery{qp_seat(from.peer_qpn), *to, from.peer_qpn, from, from_qpn, message};
  to->lock.lock(seat_);
  const std::uint32_t state = to->state.load(std::memory_order_seq_cst);
  // A packet names the queue pair that it goes to, not the one that it comes from: a responder takes it from
  // whoever is at the right LID and guesses the PSN, and answers the queue pair that it is connected to.
  const bool connected = to->peer_qpn == from_qpn;
  Reception reception;
  if ((state == state_word(IBV_QPS_RTR) || state == state_word(IBV_QPS_RTS) ||
       state == state_word(IBV_QPS_SQD) || state == state_word(IBV_QPS_SQE)) &&
      to->type == from.type && to->port == target.port && has_lid(lab_.port(from.port), to->peer_lid) &&
      (connected || !is_read(message.opcode)) && lab_.attached(*to)) {
    if (pkey_matches(from, *to))
      reception = respond(delivery);
    else
      delivery.tidings.bad_key = kTrapBadPkey;
  }
  to->lock.unlock();
  tell(delivery);
  if (reception.response == Response::acknowledged) count_answer(from, target, message);
  if (reliable && !(target.answers && connected)) return {};
  return reception;
}

Reception Wire::respond(Delivery& delivery) {
  const Message& message = delivery.message;
  SharedQp& to = delivery.to;
  const bool reliable = to.type == IBV_QPT_RC;
  bool again = false;
  if (reliable) {
    const std::uint32_t ahead = (message.psn - to.expected_psn) & kPsnMask;
    if (ahead > kPsnMask / 2) {
      again = true;  // delivered before, only the answer was lost (9.7.5.1.2)
    } else if (ahead != 0) {
      return {};  // something before it was lost
    }
  }
  if (to.established == 0) {
    to.established = 1;
    delivery.tidings.established = to.state.load(std::memory_order_relaxed) == state_word(IBV_QPS_RTR);
  }
  if (again && message.opcode != IBV_WR_RDMA_READ) {
    if (message.opcode == IBV_WR_ATOMIC_CMP_AND_SWP || message.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
      const auto known = std::find_if(to.atomic_results.begin(), to.atomic_results.end(),
                                      [&](const AtomicResult& r) { return r.valid && r.psn == message.psn; });
      if (known == to.atomic_results.end()) return {};
      std::memcpy(message.local[0].address, &known->value, 8);
    }
    return {Response::acknowledged};
  }
  // The path MTU of both ends must agree, or the packets do not have the length that they should have.
  if (to.path_mtu != delivery.from.path_mtu && message.length > std::min(to.path_mtu, delivery.from.path_mtu))
    return {refuse(delivery, Response::invalid_request)};

  Response response = Response::acknowledged;
  switch (message.opcode) {
    case IBV_WR_SEND_WITH_INV:
      if (find_window(delivery) == nullptr) {
        response = Response::remote_access_error;
        break;
      }
      [[fallthrough]];
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
      response = receive(delivery, true);
      break;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_READ:
      response = rdma(delivery, again);
      break;
    case IBV_WR_RDMA_WRITE_WITH_IMM: {
      response = can_receive(delivery) ? rdma(delivery, again) : Response::receiver_not_ready;
      if (response == Response::acknowledged) response = receive(delivery, false);
      break;
    }
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      response = atomic(delivery);
      break;
    default:
      response = Response::invalid_request;
      break;
  }
  if (response == Response::acknowledged) {
    if (!again) {
      to.expected_psn = (to.expected_psn + message.packets) & kPsnMask;
      to.msn = (to.msn + 1) & kPsnMask;
    }
  } else if (response != Response::receiver_not_ready && response != Response::silence) {
    response = refuse(delivery, response);
  }
  return {response, to.min_rnr_timer};
}

/// A NAK that puts the responder into the error state (9.9.3, classes C and F). UC has none, and goes on.
Response Wire::refuse(Delivery& delivery, Response response) {
  if (delivery.to.type != IBV_QPT_RC) return Response::silence;
  if (response == Response::remote_access_error) delivery.tidings.access_error = true;
  if (response == Response::invalid_request && !delivery.tidings.failed)
    delivery.tidings.request_error = true;
  fail(delivery);
  return response;
}

void Wire::fail(Delivery& delivery) {
  SharedQp& to = delivery.to;
  to.state.store(state_word(IBV_QPS_ERR), std::memory_order_seq_cst);
  const FlushOutcome outcome = flush_receive_queue(lab_, delivery.seat, to, delivery.to_qpn, seat_);
  delivery.tidings.failed = true;
  delivery.tidings.wake |= outcome.wake;
  delivery.tidings.cq_error |= outcome.overrun;
  delivery.tidings.last_wqe |= to.srq != kNone;
}

void Wire::tell(const Delivery& delivery) {
  const Tidings& t = delivery.tidings;
  const SharedQp& to = delivery.to;
  if (t.wake) wake(delivery.seat, to.recv_cq);
  if (t.bad_key != 0) report_key(delivery);
  if (t.established) raise(delivery.seat, to.hca, IBV_EVENT_COMM_EST, delivery.to_qpn);
  if (t.cq_error) raise(delivery.seat, to.hca, IBV_EVENT_CQ_ERR, to.recv_cq);
  if (t.access_error) raise(delivery.seat, to.hca, IBV_EVENT_QP_ACCESS_ERR, delivery.to_qpn);
  if (t.request_error) raise(delivery.seat, to.hca, IBV_EVENT_QP_REQ_ERR, delivery.to_qpn);
  if (t.fatal) raise(delivery.seat, to.hca, IBV_EVENT_QP_FATAL, delivery.to_qpn);
  if (t.srq_limit) raise(delivery.seat, to.hca, IBV_EVENT_SRQ_LIMIT_REACHED, to.srq);
  if (t.last_wqe) raise(delivery.seat, to.hca, IBV_EVENT_QP_LAST_WQE_REACHED, delivery.to_qpn);
}

/// The receiver's adapter counts the packet and tells the subnet manager (traps 257 and 258).
void Wire::report_key(const Delivery& delivery) {
  const SharedPort& port = lab_.port(delivery.from.port);
  const Route* route = delivery.message.route;
  KeyViolation violation{
      .slid = static_cast<std::uint16_t>(port.lid.load(std::memory_order_relaxed) |
                                         (route != nullptr ? route->path_bits : 0U)),
      .dlid = static_cast<std::uint16_t>(route != nullptr ? route->dlid : delivery.from.peer_lid),
      .key = delivery.message.remote_qkey,
      .sl = route != nullptr ? route->sl : std::uint8_t{0},
      .src_qp = delivery.from_qpn,
      .dst_qp = delivery.to_qpn};
  if (delivery.tidings.bad_key == kTrapBadPkey)
    violation.key = port.pkeys[delivery.from.pkey_index].load(std::memory_order_relaxed);
  try {
    session_.report_key(delivery.to.port, delivery.tidings.bad_key, violation);
  } catch (const std::system_error&) {
    // The hardware is gone; nobody is left to tell.
  }
}

/// What a request's R_Key names; nullptr also where it is a window of another queue pair.
const SharedMr* Wire::find_remote(const Delivery& delivery, std::uint32_t access,
                                  std::uint64_t length) const {
  const SharedMr* mr = find_memory(delivery.seat, delivery.message.rkey, delivery.to.pd, access,
                                   delivery.message.remote_address, length);
  return mr != nullptr && mr->qp_num != 0 && mr->qp_num != delivery.to_qpn ? nullptr : mr;
}

/// The window that a request invalidates: of type 2, and bound through this queue pair (10.6.7.2.2).
SharedMr* Wire::find_window(const Delivery& delivery) const {
  const std::uint32_t key = delivery.message.imm_data;
  SharedMr& mr = lab_.arena(delivery.seat).mrs[key_index(key)];
  const bool valid = key != 0 && key_seat(key) == delivery.seat &&
                     mr.key.load(std::memory_order_acquire) == key && mr.window_type == IBV_MW_TYPE_2 &&
                     mr.qp_num == delivery.to_qpn && mr.pd == delivery.to.pd;
  return valid ? &mr : nullptr;
}

/// WRITE and READ: the same, the other way round.
Response Wire::rdma(Delivery& delivery, bool again) {
  const Message& message = delivery.message;
  const bool reading = message.opcode == IBV_WR_RDMA_READ;
  const std::uint32_t access = reading ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
  if ((delivery.to.access & access) == 0 || (reading && delivery.to.max_dest_rd_atomic == 0))
    return Response::invalid_request;
  if (message.length == 0) return Response::acknowledged;  // its R_Key is not looked at (9.7.4.1.6)
  const SharedMr* mr = find_remote(delivery, access, message.length);
  if (mr == nullptr) return again ? Response::silence : Response::remote_access_error;
  const RemotePiece remote{mr, mr->address + (message.remote_address - mr->iova), message.length};
  return response_to(dma_.transfer(reading ? Direction::from_remote : Direction::to_remote,
                                   {message.local.data(), message.pieces}, delivery.seat, {&remote, 1}));
}

Response Wire::atomic(Delivery& delivery) {
  const Message& message = delivery.message;
  SharedQp& to = delivery.to;
  if ((to.access & IBV_ACCESS_REMOTE_ATOMIC) == 0 || to.max_dest_rd_atomic == 0 ||
      message.remote_address % 8 != 0)
    return Response::invalid_request;
  const SharedMr* mr = find_remote(delivery, IBV_ACCESS_REMOTE_ATOMIC, 8);
  if (mr == nullptr) return Response::remote_access_error;
  const std::uint64_t address = mr->address + (message.remote_address - mr->iova);
  const bool compare = message.opcode == IBV_WR_ATOMIC_CMP_AND_SWP;
  std::uint64_t before = 0;
  std::size_t length = 8;
  OwnerLock& lock = lab_.arena(delivery.seat).header.atomics;
  lock.lock(seat_);
  DmaResult result = DmaResult::done;
  if (void* memory = dma_.reach(delivery.seat, *mr, address, length); memory != nullptr && length == 8) {
    std::atomic_ref<std::uint64_t> word(*static_cast<std::uint64_t*>(memory));
    if (compare) {
      before = message.compare_add;
      word.compare_exchange_strong(before, message.swap);
    } else {
      before = word.fetch_add(message.compare_add);
    }
  } else {
    const RemotePiece remote{mr, address, 8};
    LocalPiece here{&before, 8};
    result = dma_.transfer(Direction::from_remote, {&here, 1}, delivery.seat, {&remote, 1});
    std::uint64_t after =
        compare ? (before == message.compare_add ? message.swap : before) : before + message.compare_add;
    here.address = &after;
    if (result == DmaResult::done && after != before)
      result = dma_.transfer(Direction::to_remote, {&here, 1}, delivery.seat, {&remote, 1});
  }
  lock.unlock();
  if (result != DmaResult::done) return response_to(result);
  AtomicResult& known = to.atomic_results[to.atomic_results_next++ % kMaxAtomicResults];
  known = {message.psn, 1, before};
  std::memcpy(message.local[0].address, &before, 8);
  return Response::acknowledged;
}

bool Wire::can_receive(Delivery& delivery) {
  std::byte* arena = lab_.arena_bytes(delivery.seat);
  if (delivery.to.srq == kNone) return ReceiveQueue(arena, delivery.to.receive).front() != nullptr;
  SharedSrq& srq = lab_.arena(delivery.seat).srqs[delivery.to.srq];
  srq.lock.lock(seat_);
  const bool ready = ReceiveQueue(arena, srq.receive).front() != nullptr;
  srq.lock.unlock();
  return ready;
}

/// Takes a receive request, scatters the payload to it if there is one, and completes it.
Response Wire::receive(Delivery& delivery, bool with_payload) {
  SharedQp& to = delivery.to;
  const Message& message = delivery.message;
  std::byte* arena_bytes = lab_.arena_bytes(delivery.seat);
  Arena& arena = lab_.arena(delivery.seat);
  const bool datagram = to.type == IBV_QPT_UD;
  ReceiveJournal& journal = to.journal;

  // Take a request. The journal says how to give it back, or to finish, should this process die.
  const ReceiveWqe* wqe = nullptr;
  std::uint32_t pd = to.pd;
  journal.cq_known.store(0, std::memory_order_relaxed);
  if (to.srq == kNone) {
    wqe = ReceiveQueue(arena_bytes, to.receive).front();
    if (wqe == nullptr) return Response::receiver_not_ready;
    journal.head = to.receive.head;
    journal.busy.store(1, std::memory_order_release);
  } else {
    SharedSrq& srq = arena.srqs[to.srq];
    ReceiveQueue queue(arena_bytes, srq.receive);
    pd = srq.pd;
    srq.lock.lock(seat_);
    wqe = queue.front();
    if (wqe == nullptr) {
      srq.lock.unlock();
      return Response::receiver_not_ready;
    }
    std::memcpy(static_cast<void*>(&journal.taken), wqe, wqe_bytes(wqe->sge_count));
    wqe = &journal.taken;
    journal.head = srq.receive.head;
    journal.busy.store(1, std::memory_order_release);
    queue.pop();
    const std::uint32_t limit = srq.limit.load(std::memory_order_relaxed);
    if (limit != 0 && queue.size() < limit) {
      srq.limit.store(0, std::memory_order_relaxed);
      delivery.tidings.srq_limit = true;
    }
    srq.lock.unlock();
  }

  Completion completion{
      .wr_id = wqe->wr_id,
      .byte_len = static_cast<std::uint32_t>(message.length),
      .qp_num = delivery.to_qpn,
      .src_qp = delivery.from_qpn,
      .pkey_index = static_cast<std::uint16_t>(to.pkey_index),
      .status = IBV_WC_SUCCESS,
      .opcode = static_cast<std::uint8_t>(with_payload ? IBV_WC_RECV : IBV_WC_RECV_RDMA_WITH_IMM)};
  const SharedPort& from_port = lab_.port(delivery.from.port);
  const SharedPort& to_port = lab_.port(to.port);
  const std::uint32_t path_bits = datagram ? message.route->path_bits : 0;
  completion.slid = static_cast<std::uint16_t>(from_port.lid.load(std::memory_order_relaxed) | path_bits);
  const std::uint32_t dlid = datagram ? message.route->dlid : delivery.from.peer_lid;
  if (dlid < kFirstMulticastLid)
    completion.dlid_path_bits =
        static_cast<std::uint8_t>(dlid & ((1U << to_port.lmc.load(std::memory_order_relaxed)) - 1));
  if (datagram) completion.sl = message.route->sl;
  if (carries_immediate(message.opcode)) {
    completion.wc_flags |= IBV_WC_WITH_IMM;
    completion.imm_data = message.imm_data;
  }

  Response response = Response::acknowledged;
  if (with_payload) {
    // Where the bytes go: the request's entries, after the 40 bytes that a datagram leaves for the GRH.
    std::array<RemotePiece, kMaxSge> remote;
    std::uint32_t pieces = 0;
    std::uint64_t room = 0;
    std::uint64_t needed = message.length + (datagram ? kGrhBytes : 0);
    std::uint8_t status = IBV_WC_SUCCESS;
    for (std::uint32_t i = 0; i < wqe->sge_count && room < needed; ++i) {
      const SharedSge& sge = wqe->sges[i];
      const std::uint64_t length = std::min<std::uint64_t>(sge.length, needed - room);
      if (length == 0) continue;
      const SharedMr* mr =
          find_memory(delivery.seat, sge.lkey, pd, IBV_ACCESS_LOCAL_WRITE, sge.address, length);
      if (mr == nullptr) {
        status = IBV_WC_LOC_PROT_ERR;
        response = Response::remote_operation_error;
        break;
      }
      remote[pieces++] = {mr, mr->address + (sge.address - mr->iova), length};
      room += length;
    }
    if (status == IBV_WC_SUCCESS && room < needed) {
      status = IBV_WC_LOC_LEN_ERR;
      response = Response::invalid_request;
    }
    DmaResult moved = DmaResult::done;
    if (status == IBV_WC_SUCCESS && needed != 0) {
      std::array<LocalPiece, kMaxSge + 1> local;
      std::uint32_t local_pieces = 0;
      ibv_grh grh{};
      std::uint32_t skip = 0;
      if (datagram) {
        if (message.route->global) {
          grh = make_grh(from_port, message);
          completion.wc_flags |= IBV_WC_GRH;
          local[local_pieces++] = {&grh, kGrhBytes};
        } else {
          skip = kGrhBytes;  // those bytes stay as they are
        }
        completion.byte_len += kGrhBytes;
      }
      std::copy_n(message.local.begin(), message.pieces, local.begin() + local_pieces);
      local_pieces += message.pieces;
      std::uint32_t first = 0;
      while (skip > 0 && first < pieces) {
        const auto cut = static_cast<std::uint32_t>(std::min<std::size_t>(skip, remote[first].length));
        remote[first].address += cut;
        remote[first].length -= cut;
        skip -= cut;
        if (remote[first].length == 0) ++first;
      }
      moved = dma_.transfer(Direction::to_remote, {local.data(), local_pieces}, delivery.seat,
                            {remote.data() + first, pieces - first});
    }
    if (moved == DmaResult::fault) {
      status = IBV_WC_LOC_PROT_ERR;
      response = Response::remote_operation_error;
    }
    completion.status = status;
  }
  if (message.opcode == IBV_WR_SEND_WITH_INV && completion.status == IBV_WC_SUCCESS) {
    if (SharedMr* window = find_window(delivery)) window->key.store(0, std::memory_order_release);
    completion.wc_flags |= IBV_WC_WITH_INV;
    completion.imm_data = message.imm_data;
  }

  const auto pushed =
      CompletionQueue(lab_, delivery.seat, to.recv_cq).push(seat_, completion, message.solicited, &journal);
  if (to.srq == kNone) {
    ReceiveQueue queue(arena_bytes, to.receive);
    queue.pop();
    queue.prefetch();
  }
  journal.busy.store(0, std::memory_order_release);
  delivery.tidings.wake |= pushed.wake;
  if (pushed.overrun) {
    delivery.tidings.cq_error = true;
    delivery.tidings.fatal = true;
    fail(delivery);
    return Response::remote_operation_error;
  }
  if (completion.status != IBV_WC_SUCCESS) fail(delivery);
  return response;
}

// ---- Datagrams ----

void Wire::send_datagram(SharedQp& from, std::uint32_t from_qpn, const Message& message) {
  const std::uint32_t dlid = message.route->dlid;
  if (dlid < kFirstMulticastLid || dlid == kPermissiveLid) {
    const Target target = route(from, dlid);
    if (target.port == kNoSharedPort) return lose(from, dlid, message);
    count(from, target.port, message);
    datagram_to(target.port, message.remote_qpn, from, from_qpn, message);
    return;
  }
  // To every queue pair of the group: those of this port, and those of the port at the other end.
  const Target target = route(from, dlid);
  if (!active(lab_.port(from.port))) return;
  if (target.port != kNoSharedPort)
    count(from, target.port, message);
  else
    lose(from, dlid, message);
  for (std::uint32_t seat = 1; seat < kMaxSeats; ++seat) {
    if (!lab_.live(seat)) continue;
    Arena& arena = lab_.arena(seat);
    if (arena.header.multicast_qps.load(std::memory_order_acquire) == 0) continue;
    const std::uint32_t qps = arena.header.qps.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < qps; ++i) {
      SharedQp& qp = arena.qps[i];
      if (qp.multicast_count.load(std::memory_order_acquire) == 0) continue;
      if (qp.port != from.port && qp.port != target.port) continue;
      const std::uint32_t qpn = qp_number(seat, i);
      if (qpn == from_qpn && (qp.flags & IBV_QP_CREATE_BLOCK_SELF_MCAST_LB) != 0) continue;
      const bool member =
          std::any_of(qp.multicast.begin(), qp.multicast.end(), [&](const MulticastMembership& m) {
            return m.in_use != 0 && m.lid == dlid && m.gid == message.route->dgid;
          });
      if (member) datagram_to(qp.port, qpn, from, from_qpn, message);
    }
  }
}

void Wire::datagram_to(std::uint32_t port, std::uint32_t qpn, const SharedQp& from, std::uint32_t from_qpn,
                       const Message& message) {
  SharedQp* to = find_qp(qpn);
  if (to == nullptr) return;
  Delivery delivery{qp_seat(qpn), *to, qpn, from, from_qpn, message};
  to->lock.lock(seat_);
  const std::uint32_t state = to->state.load(std::memory_order_seq_cst);
  if (state >= state_word(IBV_QPS_RTR) && state <= state_word(IBV_QPS_SQE) && to->type == IBV_QPT_UD &&
      to->port == port && lab_.attached(*to)) {
    if (!pkey_matches(from, *to))
      delivery.tidings.bad_key = kTrapBadPkey;
    else if (to->qkey != message.remote_qkey)
      delivery.tidings.bad_key = kTrapBadQkey;
    else
      receive(delivery, true);
  }
  to->lock.unlock();
  tell(delivery);
}

// ---- Waking ----

void Wire::wake(std::uint32_t seat, std::uint32_t index) {
  SharedCq& cq = lab_.arena(seat).cqs[index];
  const ClientId client = lab_.seat(seat).client.load(std::memory_order_acquire);
  const std::uint32_t channel = cq.channel;
  int descriptor = -1;
  {
    std::lock_guard lock(channels_mutex_);
    const auto known = channels_.find({client, channel});
    if (known != channels_.end()) {
      descriptor = known->second;
    } else {
      try {
        descriptor = session_.import(client, channel);
      } catch (const std::system_error&) {
        descriptor = -1;  // the hardware is gone, and with it everything
      }
      if (descriptor >= 0) {
        // Channels of processes that are gone go, so that descriptors do not pile up.
        std::erase_if(channels_, [&](const auto& entry) {
          for (std::uint32_t s = 1; s < kMaxSeats; ++s)
            if (lab_.seat(s).client.load(std::memory_order_relaxed) == entry.first.first) return false;
          ::close(entry.second);
          return true;
        });
        channels_.emplace(std::pair{client, channel}, descriptor);
      }
    }
    const std::uint64_t one = 1;
    if (descriptor >= 0) [[maybe_unused]]
      const ssize_t written = ::write(descriptor, &one, sizeof one);
  }
  cq.waker.store(0, std::memory_order_release);
}

void Wire::raise(std::uint32_t seat, std::uint32_t hca, std::uint32_t type, std::uint64_t object) {
  try {
    session_.raise_event(lab_.seat(seat).client.load(std::memory_order_acquire), hca,
                         {.type = type, .port = 0, .object = object});
  } catch (const std::system_error&) {
    // The hardware is gone; nobody is left to tell.
  }
}

}  // namespace fabric::softhca
