// libibverbs ABI: queue pairs, shared receive queues, multicast.
#include <infiniband/verbs.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "verbs/softhca/objects.hpp"
#include "verbs/softhca/real_library.hpp"
#include "verbs/softhca/transitions.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint32_t kMaxWr = 32768;
constexpr std::uint32_t kMaxInline = 1024;
constexpr std::uint8_t kMaxRdAtomic = 16;

std::uint32_t state_word(ibv_qp_state state) {
  return static_cast<std::uint32_t>(state) + 1;
}

/// Appends receive requests to the ring of a queue pair or an SRQ.
template <class Object>
int post_receives(Object& object, ReceiveRing& ring, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  ReceiveQueue queue(object.process->lab.arena_bytes(object.process->seat), ring);
  std::lock_guard lock(object.posting);
  for (; wr != nullptr; wr = wr->next) {
    if (wr->num_sge < 0 || static_cast<std::uint32_t>(wr->num_sge) > ring.max_sge) {
      *bad = wr;
      return EINVAL;
    }
    if (!queue.post(wr->wr_id, wr->sg_list, static_cast<std::uint32_t>(wr->num_sge),
                    object.posted - object.completed.load(std::memory_order_acquire))) {
      *bad = wr;
      return ENOMEM;
    }
    ++object.posted;
  }
  return 0;
}

}  // namespace

int QueuePair::post_receive(ibv_recv_wr* wr, ibv_recv_wr** bad) {
  if (shared->srq != kNone || state() == IBV_QPS_RESET) {
    *bad = wr;
    return EINVAL;
  }
  const int error = post_receives(*this, shared->receive, wr, bad);
  if (state() == IBV_QPS_ERR) {
    shared->lock.lock(process->seat);
    const FlushOutcome outcome =
        flush_receive_queue(process->lab, process->seat, *shared, number(), process->seat);
    shared->lock.unlock();
    if (outcome.wake) process->wire.wake(process->seat, recv_cq->index);
    if (outcome.overrun) process->wire.raise(process->seat, shared->hca, IBV_EVENT_CQ_ERR, recv_cq->index);
  }
  return error;
}

namespace {

int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr** bad) {
  return object_of(qp).post_send(wr, bad);
}
int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  return object_of(qp).post_receive(wr, bad);
}

int post_srq_recv(ibv_srq* srq, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  return post_receives(object_of(srq), object_of(srq).shared->receive, wr, bad);
}

ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr& attr, std::uint32_t flags) {
  if (is_gone(pd->context)) return nullptr;
  if (attr.qp_type != IBV_QPT_RC && attr.qp_type != IBV_QPT_UC && attr.qp_type != IBV_QPT_UD) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  ibv_qp_cap& cap = attr.cap;
  if (attr.send_cq == nullptr || attr.recv_cq == nullptr || cap.max_send_wr > kMaxWr ||
      cap.max_recv_wr > kMaxWr || cap.max_send_sge > kMaxSge || cap.max_recv_sge > kMaxSge ||
      cap.max_inline_data > kMaxInline ||
      (attr.srq == nullptr && cap.max_recv_wr > 0 && cap.max_recv_sge == 0)) {
    errno = EINVAL;
    return nullptr;
  }
  Process& process = Process::get();
  if (attr.srq != nullptr) cap.max_recv_wr = cap.max_recv_sge = 0;
  ReceiveRing layout{};
  const std::uint64_t bytes =
      attr.srq != nullptr ? 0 : ReceiveQueue::lay_out(layout, cap.max_recv_wr, cap.max_recv_sge);
  std::uint64_t ring = 0;
  if (bytes != 0) {
    const auto taken = process.take_ring(bytes);
    if (!taken) {
      errno = ENOMEM;
      return nullptr;
    }
    ring = *taken;
  }
  std::unique_lock lock(process.mutex);
  const auto index = process.qp_numbers.take();
  if (!index) {
    lock.unlock();
    if (bytes != 0) process.give_ring(ring, bytes);
    errno = ENOMEM;
    return nullptr;
  }
  auto* qp = new QueuePair;
  SharedQp& shared = process.arena.qps[*index];
  qp->index = *index;
  qp->shared = &shared;
  qp->process = &process;
  qp->send_cq = &object_of(attr.send_cq);
  qp->recv_cq = &object_of(attr.recv_cq);
  qp->ring_bytes = bytes;
  qp->timer.qp = qp;
  qp->created = attr;
  qp->slots = std::bit_ceil(std::max(cap.max_send_wr, 1U));
  qp->send_queue.resize(qp->slots);
  qp->send_sges.resize(std::size_t{qp->slots} * cap.max_send_sge);
  qp->send_inline.resize(std::size_t{qp->slots} * cap.max_inline_data);
  if (attr.qp_type == IBV_QPT_UD)
    qp->send_routes.resize(qp->slots);
  else
    qp->bindings.resize(qp->slots);

  const std::uint32_t qpn = qp_number(process.seat, *index);
  qp->chance = process.lab.memory().header.seed ^ (std::uint64_t{qpn} << 32);
  shared.type = attr.qp_type;
  shared.port = kNoSharedPort;
  shared.hca = context_of(pd->context).hca->number;
  shared.insertion = context_of(pd->context).insertion;
  shared.peer_qpn = shared.peer_lid = shared.qkey = shared.pkey_index = shared.access = 0;
  shared.path_mtu = 4096;
  shared.pd = pd->handle;
  shared.recv_cq = qp->recv_cq->index;
  shared.send_cq = qp->send_cq->index;
  shared.srq = attr.srq == nullptr ? kNone : object_of(attr.srq).index;
  shared.flags = flags;
  shared.established = 0;
  shared.multicast_count = 0;
  for (MulticastMembership& membership : shared.multicast) membership.in_use = 0;
  shared.receive.offset = ring;
  shared.receive.stride = layout.stride;
  shared.receive.slots = layout.slots;
  shared.receive.max_wr = layout.max_wr;
  shared.receive.max_sge = layout.max_sge;
  shared.receive.head = shared.receive.seen_tail = 0;
  shared.receive.tail = 0;
  if (process.arena.header.qps < *index + 1) process.arena.header.qps = *index + 1;

  ibv_qp& ibv = qp->ibv.qp_base;
  ibv.context = pd->context;
  ibv.qp_context = attr.qp_context;
  ibv.pd = pd;
  ibv.send_cq = attr.send_cq;
  ibv.recv_cq = attr.recv_cq;
  ibv.srq = attr.srq;
  ibv.handle = *index;
  ibv.qp_num = qpn;
  ibv.state = IBV_QPS_RESET;
  ibv.qp_type = attr.qp_type;
  pthread_mutex_init(&ibv.mutex, nullptr);
  pthread_cond_init(&ibv.cond, nullptr);
  ++qp->send_cq->users;
  ++qp->recv_cq->users;
  if (attr.srq != nullptr) ++object_of(attr.srq).users;
  reinterpret_cast<ProtectionDomain*>(pd)->users.fetch_add(1);
  process.qps[*index].store(qp, std::memory_order_release);
  shared.state.store(state_word(IBV_QPS_RESET), std::memory_order_release);
  return &ibv;
}

ibv_qp* create_qp_ex(ibv_context*, ibv_qp_init_attr_ex* attr) {
  constexpr std::uint32_t kKnown =
      IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
  constexpr std::uint64_t kConnected = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM |
                                       IBV_QP_EX_WITH_SEND_WITH_INV | IBV_QP_EX_WITH_BIND_MW |
                                       IBV_QP_EX_WITH_LOCAL_INV;
  constexpr std::uint64_t kReliable = kConnected | IBV_QP_EX_WITH_RDMA_READ |
                                      IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
  const bool extended = (attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) != 0;
  const std::uint32_t flags = (attr->comp_mask & IBV_QP_INIT_ATTR_CREATE_FLAGS) != 0 ? attr->create_flags : 0;
  std::uint64_t allowed = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
  if (attr->qp_type == IBV_QPT_RC) allowed |= kReliable;
  if (attr->qp_type == IBV_QPT_UC) allowed |= kConnected;
  if ((attr->comp_mask & IBV_QP_INIT_ATTR_PD) == 0 || attr->pd == nullptr) {
    errno = EINVAL;
    return nullptr;
  }
  if ((attr->comp_mask & ~kKnown) != 0 || (flags & ~std::uint32_t{IBV_QP_CREATE_BLOCK_SELF_MCAST_LB}) != 0 ||
      (extended && (attr->send_ops_flags & ~allowed) != 0)) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  // The beginning of the extended structure is the classic one.
  ibv_qp_init_attr classic{};
  std::memcpy(&classic, attr, offsetof(ibv_qp_init_attr, sq_sig_all) + sizeof classic.sq_sig_all);
  ibv_qp* qp = create_qp(attr->pd, classic, flags);
  if (qp == nullptr) return nullptr;
  attr->cap = classic.cap;
  if (extended) install_extended_posting(object_of(qp), attr->send_ops_flags);
  return qp;
}

/// The completions of a queue pair that is reset or destroyed are gone, as on hardware.
void forget_completions(QueuePair& qp) {
  for (CompletionQueueObject* cq : {qp.send_cq, qp.recv_cq}) {
    std::lock_guard polling(cq->polling);
    cq->shared->lock.lock(qp.process->seat);
    const std::uint32_t receives = cq->queue.load(std::memory_order_acquire)->forget(qp.number());
    cq->shared->lock.unlock();
    if (qp.ibv.qp_base.srq != nullptr) qp.receive_completed(receives);
    if (qp.send_cq == qp.recv_cq) break;
  }
  std::lock_guard posting(qp.posting);
  qp.completed.store(qp.posted, std::memory_order_release);  // its own queue is empty
}

/// Takes the queue pair off the list of those whose acknowledgements have come.
void stop_settling(QueuePair& qp) {
  std::lock_guard serial(qp.send_cq->settling);
  std::lock_guard lock(qp.mutex);
  std::lock_guard pending(qp.send_cq->pending_mutex);
  std::erase(qp.send_cq->pending, &qp);
  qp.send_cq->pending_count.store(static_cast<std::uint32_t>(qp.send_cq->pending.size()));
  qp.pending = false;
}

ibv_srq* create_srq_ex(ibv_context*, ibv_srq_init_attr_ex* attr) {
  if ((attr->comp_mask & ~(IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD)) != 0 ||
      ((attr->comp_mask & IBV_SRQ_INIT_ATTR_TYPE) != 0 && attr->srq_type != IBV_SRQT_BASIC)) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  if ((attr->comp_mask & IBV_SRQ_INIT_ATTR_PD) == 0 || attr->pd == nullptr) {
    errno = EINVAL;
    return nullptr;
  }
  ibv_srq_init_attr classic{attr->srq_context, attr->attr};
  return ibv_create_srq(attr->pd, &classic);
}

int check_attributes(QueuePair& qp, const ibv_qp_attr& attr, int mask, std::uint32_t& port_index) {
  Context& context = context_of(qp.ibv.qp_base.context);
  if ((mask & IBV_QP_PORT) != 0) {
    if (context.port(attr.port_num) == nullptr) return EINVAL;
    port_index = context.hca->ports[attr.port_num - 1U];
  }
  const SharedPort* port = port_index == kNoSharedPort ? nullptr : &qp.process->lab.port(port_index);
  if ((mask & IBV_QP_PKEY_INDEX) != 0 && attr.pkey_index >= kMaxPkeys) return EINVAL;
  if ((mask & IBV_QP_PATH_MTU) != 0 && (attr.path_mtu < IBV_MTU_256 || attr.path_mtu > IBV_MTU_4096 ||
                                        (port != nullptr && port->active_mtu != 0 &&
                                         attr.path_mtu > static_cast<int>(port->active_mtu.load()))))
    return EINVAL;
  if ((mask & IBV_QP_AV) != 0 &&
      (attr.ah_attr.dlid == 0 || context.port(attr.ah_attr.port_num) == nullptr || attr.ah_attr.sl > 15))
    return EINVAL;
  if ((mask & IBV_QP_MAX_QP_RD_ATOMIC) != 0 && attr.max_rd_atomic > kMaxRdAtomic) return EINVAL;
  if ((mask & IBV_QP_MAX_DEST_RD_ATOMIC) != 0 && attr.max_dest_rd_atomic > kMaxRdAtomic) return EINVAL;
  if ((mask & IBV_QP_MIN_RNR_TIMER) != 0 && attr.min_rnr_timer > 31) return EINVAL;
  if ((mask & IBV_QP_TIMEOUT) != 0 && attr.timeout > 31) return EINVAL;
  if ((mask & IBV_QP_RETRY_CNT) != 0 && attr.retry_cnt > 7) return EINVAL;
  if ((mask & IBV_QP_RNR_RETRY) != 0 && attr.rnr_retry > 7) return EINVAL;
  if ((mask & IBV_QP_DEST_QPN) != 0 && attr.dest_qp_num > 0xFFFFFF) return EINVAL;
  if ((mask & (IBV_QP_ALT_PATH | IBV_QP_CAP | IBV_QP_RATE_LIMIT)) != 0) return EOPNOTSUPP;
  return 0;
}

/// Under the queue pair's locks: takes over what `mask` names.
void apply(QueuePair& qp, const ibv_qp_attr& attr, int mask, std::uint32_t port_index) {
  SharedQp& shared = *qp.shared;
  ibv_qp_attr& known = qp.attributes;
  if ((mask & IBV_QP_PORT) != 0) {
    known.port_num = attr.port_num;
    shared.port = port_index;
  }
  if ((mask & IBV_QP_PKEY_INDEX) != 0) shared.pkey_index = known.pkey_index = attr.pkey_index;
  if ((mask & IBV_QP_ACCESS_FLAGS) != 0) shared.access = known.qp_access_flags = attr.qp_access_flags;
  if ((mask & IBV_QP_QKEY) != 0) shared.qkey = known.qkey = attr.qkey;
  if ((mask & IBV_QP_AV) != 0) {
    known.ah_attr = attr.ah_attr;
    shared.peer_lid = attr.ah_attr.dlid;
  }
  if ((mask & IBV_QP_PATH_MTU) != 0) {
    known.path_mtu = attr.path_mtu;
    shared.path_mtu = 128U << attr.path_mtu;
  }
  if ((mask & IBV_QP_DEST_QPN) != 0) shared.peer_qpn = known.dest_qp_num = attr.dest_qp_num;
  if ((mask & IBV_QP_RQ_PSN) != 0) shared.expected_psn = known.rq_psn = attr.rq_psn & 0xFFFFFF;
  if ((mask & IBV_QP_SQ_PSN) != 0) qp.next_psn = known.sq_psn = attr.sq_psn & 0xFFFFFF;
  if ((mask & IBV_QP_TIMEOUT) != 0) known.timeout = attr.timeout;
  if ((mask & IBV_QP_RETRY_CNT) != 0) qp.retries = known.retry_cnt = attr.retry_cnt;
  if ((mask & IBV_QP_RNR_RETRY) != 0) qp.rnr_retries = known.rnr_retry = attr.rnr_retry;
  if ((mask & IBV_QP_MAX_QP_RD_ATOMIC) != 0) known.max_rd_atomic = attr.max_rd_atomic;
  if ((mask & IBV_QP_MAX_DEST_RD_ATOMIC) != 0)
    shared.max_dest_rd_atomic = known.max_dest_rd_atomic = attr.max_dest_rd_atomic;
  if ((mask & IBV_QP_MIN_RNR_TIMER) != 0) shared.min_rnr_timer = known.min_rnr_timer = attr.min_rnr_timer;
  if ((mask & IBV_QP_PATH_MIG_STATE) != 0) known.path_mig_state = attr.path_mig_state;
  if ((mask & IBV_QP_EN_SQD_ASYNC_NOTIFY) != 0) known.en_sqd_async_notify = attr.en_sqd_async_notify;
}

int modify(QueuePair& qp, const ibv_qp_attr& attr, int mask) {
  std::unique_lock lock(qp.mutex);
  const ibv_qp_state from = qp.state();
  if ((mask & IBV_QP_CUR_STATE) != 0 && attr.cur_qp_state != from) return EINVAL;
  const ibv_qp_state to = (mask & IBV_QP_STATE) != 0 ? attr.qp_state : from;
  if (!transition_allowed(qp.created.qp_type, from, to, mask)) return EINVAL;
  std::uint32_t port_index = qp.shared->port;
  if (const int error = check_attributes(qp, attr, mask, port_index)) return error;

  if (to == IBV_QPS_ERR) {
    if (from != IBV_QPS_ERR) {
      qp.settle();
      qp.enter_error();
    }
    return 0;
  }
  SharedQp& shared = *qp.shared;
  shared.lock.lock(qp.process->seat);
  apply(qp, attr, mask, port_index);
  if (to == IBV_QPS_RESET) {
    shared.established = 0;
    shared.msn = 0;
    for (AtomicResult& result : shared.atomic_results) result.valid = 0;
    if (shared.srq == kNone)
      ReceiveQueue(qp.process->lab.arena_bytes(qp.process->seat), shared.receive).clear();
  }
  shared.state.store(state_word(to), std::memory_order_seq_cst);
  shared.lock.unlock();
  qp.ibv.qp_base.state = to;
  if (to == IBV_QPS_RESET) {
    qp.reset_send_queue();
    lock.unlock();
    qp.process->engine.cancel(qp.timer);
    stop_settling(qp);
    forget_completions(qp);
  } else if (from == IBV_QPS_RTS && to == IBV_QPS_SQD && qp.attributes.en_sqd_async_notify != 0) {
    qp.process->wire.raise(qp.process->seat, shared.hca, IBV_EVENT_SQ_DRAINED, qp.number());
  } else if (to == IBV_QPS_RTS) {
    qp.advance();
  }
  return 0;
}

}  // namespace

void install_queue_pair_operations(verbs_context& verbs) {
  verbs.create_qp_ex = create_qp_ex;
  verbs.create_srq_ex = create_srq_ex;
  verbs.context.ops.post_send = post_send;
  verbs.context.ops.post_recv = post_recv;
  verbs.context.ops.post_srq_recv = post_srq_recv;
}

}  // namespace fabric::softhca

using namespace fabric::softhca;

extern "C" {

ibv_qp* ibv_create_qp(ibv_pd* pd, ibv_qp_init_attr* attr) {
  PASS_ON(ibv_create_qp, pd, attr);
  return create_qp(pd, *attr, 0);
}

ibv_qp_ex* ibv_qp_to_qp_ex(ibv_qp* qp) {
  PASS_ON(ibv_qp_to_qp_ex, qp);
  auto& ex = object_of(qp).ibv;
  return ex.wr_start == nullptr ? nullptr : &ex;
}

int ibv_modify_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask) {
  PASS_ON(ibv_modify_qp, qp, attr, mask);
  if (is_gone(qp->context)) return EIO;
  return modify(object_of(qp), *attr, mask);
}

int ibv_query_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask, ibv_qp_init_attr* init) {
  PASS_ON(ibv_query_qp, qp, attr, mask, init);
  if (is_gone(qp->context)) return EIO;
  QueuePair& object = object_of(qp);
  std::lock_guard lock(object.mutex);
  object.shared->lock.lock(object.process->seat);
  *attr = object.attributes;
  attr->qp_state = attr->cur_qp_state = qp->state = object.state();
  attr->rq_psn = object.shared->expected_psn;
  attr->sq_psn = object.next_psn;
  attr->cap = object.created.cap;
  attr->path_mig_state = IBV_MIG_MIGRATED;
  attr->sq_draining = 0;
  object.shared->lock.unlock();
  *init = object.created;
  return 0;
}

int ibv_destroy_qp(ibv_qp* qp) {
  PASS_ON(ibv_destroy_qp, qp);
  if (keeps_objects(qp->context)) return EIO;
  QueuePair& object = object_of(qp);
  if (object.shared->multicast_count.load() != 0) return EBUSY;
  Process& process = *object.process;
  object.shared->lock.lock(process.seat);
  object.shared->state.store(0, std::memory_order_seq_cst);
  object.shared->lock.unlock();
  process.engine.cancel(object.timer);
  stop_settling(object);
  forget_completions(object);
  {
    std::lock_guard lock(process.mutex);
    process.qps[object.index].store(nullptr, std::memory_order_release);
  }
  forget_events(qp->context);
  pthread_mutex_lock(&qp->mutex);
  while (qp->events_completed != object.async_fetched) pthread_cond_wait(&qp->cond, &qp->mutex);
  pthread_mutex_unlock(&qp->mutex);
  if (object.ring_bytes != 0) process.give_ring(object.shared->receive.offset, object.ring_bytes);
  --object.send_cq->users;
  --object.recv_cq->users;
  if (qp->srq != nullptr) --object_of(qp->srq).users;
  reinterpret_cast<ProtectionDomain*>(qp->pd)->users.fetch_sub(1);
  {
    std::lock_guard lock(process.mutex);
    process.qp_numbers.give(object.index);
  }
  pthread_mutex_destroy(&qp->mutex);
  pthread_cond_destroy(&qp->cond);
  object.discard_batch();
  delete &object;
  return 0;
}

ibv_srq* ibv_create_srq(ibv_pd* pd, ibv_srq_init_attr* attr) {
  PASS_ON(ibv_create_srq, pd, attr);
  if (is_gone(pd->context)) return nullptr;
  if (attr->attr.max_wr == 0 || attr->attr.max_wr > kMaxWr || attr->attr.max_sge > kMaxSge) {
    errno = EINVAL;
    return nullptr;
  }
  Process& process = Process::get();
  ReceiveRing layout{};
  const std::uint64_t bytes =
      ReceiveQueue::lay_out(layout, attr->attr.max_wr, std::max(attr->attr.max_sge, 1U));
  const auto ring = process.take_ring(bytes);
  if (!ring) {
    errno = ENOMEM;
    return nullptr;
  }
  std::unique_lock lock(process.mutex);
  const auto index = process.srq_numbers.take();
  if (!index) {
    lock.unlock();
    process.give_ring(*ring, bytes);
    errno = ENOMEM;
    return nullptr;
  }
  auto* object = new SharedReceiveQueue;
  object->index = *index;
  object->process = &process;
  object->ring_bytes = bytes;
  SharedSrq& shared = process.arena.srqs[*index];
  object->shared = &shared;
  shared.pd = pd->handle;
  shared.limit = 0;
  shared.receive.offset = *ring;
  shared.receive.stride = layout.stride;
  shared.receive.slots = layout.slots;
  shared.receive.max_wr = layout.max_wr;
  shared.receive.max_sge = layout.max_sge;
  shared.receive.head = shared.receive.seen_tail = 0;
  shared.receive.tail = 0;
  if (process.arena.header.srqs < *index + 1) process.arena.header.srqs = *index + 1;
  ibv_srq& srq = object->ibv;
  srq.context = pd->context;
  srq.srq_context = attr->srq_context;
  srq.pd = pd;
  srq.handle = *index;
  pthread_mutex_init(&srq.mutex, nullptr);
  pthread_cond_init(&srq.cond, nullptr);
  reinterpret_cast<ProtectionDomain*>(pd)->users.fetch_add(1);
  process.srqs[*index].store(object, std::memory_order_release);
  return &srq;
}

int ibv_modify_srq(ibv_srq* srq, ibv_srq_attr* attr, int mask) {
  PASS_ON(ibv_modify_srq, srq, attr, mask);
  if (is_gone(srq->context)) return EIO;
  if ((mask & IBV_SRQ_MAX_WR) != 0) return EOPNOTSUPP;
  SharedReceiveQueue& object = object_of(srq);
  if ((mask & IBV_SRQ_LIMIT) == 0) return 0;
  if (attr->srq_limit > object.shared->receive.max_wr) return EINVAL;
  object.shared->lock.lock(object.process->seat);
  object.shared->limit.store(attr->srq_limit);
  object.shared->lock.unlock();
  return 0;
}

int ibv_query_srq(ibv_srq* srq, ibv_srq_attr* attr) {
  PASS_ON(ibv_query_srq, srq, attr);
  if (is_gone(srq->context)) return EIO;
  const SharedSrq& shared = *object_of(srq).shared;
  attr->max_wr = shared.receive.max_wr;
  attr->max_sge = shared.receive.max_sge;
  attr->srq_limit = shared.limit.load();
  return 0;
}

int ibv_destroy_srq(ibv_srq* srq) {
  PASS_ON(ibv_destroy_srq, srq);
  if (keeps_objects(srq->context)) return EIO;
  SharedReceiveQueue& object = object_of(srq);
  if (object.users.load() != 0) return EBUSY;
  Process& process = *object.process;
  {
    std::lock_guard lock(process.mutex);
    process.srqs[object.index].store(nullptr, std::memory_order_release);
  }
  forget_events(srq->context);
  pthread_mutex_lock(&srq->mutex);
  while (srq->events_completed != object.async_fetched) pthread_cond_wait(&srq->cond, &srq->mutex);
  pthread_mutex_unlock(&srq->mutex);
  process.give_ring(object.shared->receive.offset, object.ring_bytes);
  reinterpret_cast<ProtectionDomain*>(srq->pd)->users.fetch_sub(1);
  {
    std::lock_guard lock(process.mutex);
    process.srq_numbers.give(object.index);
  }
  pthread_mutex_destroy(&srq->mutex);
  pthread_cond_destroy(&srq->cond);
  delete &object;
  return 0;
}

int ibv_attach_mcast(ibv_qp* qp, const ibv_gid* gid, std::uint16_t lid) {
  PASS_ON(ibv_attach_mcast, qp, gid, lid);
  if (is_gone(qp->context)) return EIO;
  QueuePair& object = object_of(qp);
  if (qp->qp_type != IBV_QPT_UD || gid->raw[0] != 0xFF) return EINVAL;
  SharedQp& shared = *object.shared;
  int error = ENOMEM;
  shared.lock.lock(object.process->seat);
  for (const MulticastMembership& membership : shared.multicast)
    if (membership.in_use != 0 && membership.lid == lid &&
        std::memcmp(membership.gid.data(), gid->raw, 16) == 0)
      error = 0;
  for (MulticastMembership& membership : shared.multicast) {
    if (error == 0) break;
    if (membership.in_use != 0) continue;
    std::memcpy(membership.gid.data(), gid->raw, 16);
    membership.lid = lid;
    membership.in_use = 1;
    if (shared.multicast_count.fetch_add(1) == 0) object.process->arena.header.multicast_qps.fetch_add(1);
    error = 0;
  }
  shared.lock.unlock();
  return error;
}

int ibv_detach_mcast(ibv_qp* qp, const ibv_gid* gid, std::uint16_t lid) {
  PASS_ON(ibv_detach_mcast, qp, gid, lid);
  if (is_gone(qp->context)) return EIO;
  QueuePair& object = object_of(qp);
  SharedQp& shared = *object.shared;
  int error = EINVAL;
  shared.lock.lock(object.process->seat);
  for (MulticastMembership& membership : shared.multicast) {
    if (membership.in_use == 0 || membership.lid != lid ||
        std::memcmp(membership.gid.data(), gid->raw, 16) != 0)
      continue;
    membership.in_use = 0;
    if (shared.multicast_count.fetch_sub(1) == 1) object.process->arena.header.multicast_qps.fetch_sub(1);
    error = 0;
    break;
  }
  shared.lock.unlock();
  return error;
}

int ibv_set_ece(ibv_qp* qp, ibv_ece* ece) {
  PASS_ON(ibv_set_ece, qp, ece);
  return EOPNOTSUPP;
}

int ibv_query_ece(ibv_qp* qp, ibv_ece* ece) {
  PASS_ON(ibv_query_ece, qp, ece);
  return EOPNOTSUPP;
}

int ibv_query_qp_data_in_order(ibv_qp* qp, ibv_wr_opcode opcode, std::uint32_t flags) {
  PASS_ON(ibv_query_qp_data_in_order, qp, opcode, flags);
  return 0;
}

}  // extern "C"
