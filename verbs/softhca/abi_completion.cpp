// libibverbs ABI: completion queues, classic and extended, and completion channels.
#include <infiniband/verbs.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>

#include "verbs/softhca/objects.hpp"
#include "verbs/softhca/real_library.hpp"

namespace fabric::softhca {

// ---- Polling ----

/// Empty polls in a row after which a spinning program lets others run: its peer may need this very
/// processor, because here the adapter is a program too. Tens of microseconds.
constexpr std::uint32_t kPatience = 1000;

void CompletionQueueObject::settle_pending() {
  std::lock_guard serial(settling);
  std::vector<QueuePair*> due;
  {
    std::lock_guard lock(pending_mutex);
    due.swap(pending);
    pending_count.store(0, std::memory_order_relaxed);
  }
  for (QueuePair* qp : due) {
    std::lock_guard lock(qp->mutex);
    qp->pending = false;
    qp->settle();
  }
  due.clear();
  std::lock_guard lock(pending_mutex);
  if (pending.empty()) pending.swap(due);  // keeps the memory
}

/// Under `polling`.
bool CompletionQueueObject::poll_one(Completion& completion) {
  if (!queue.load(std::memory_order_acquire)->pop(completion)) return false;
  QueuePair* qp = process->qps[qp_index(completion.qp_num)].load(std::memory_order_acquire);
  if (qp == nullptr) return true;
  if (completion.is_send) {
    // Its request and all before it leave the send queue.
    qp->freed.store(completion.wqe_index + 1, std::memory_order_release);
  } else {
    qp->receive_completed();
  }
  return true;
}

int CompletionQueueObject::poll(int count, ibv_wc* completions) {
  if (pending_count.load(std::memory_order_acquire) != 0) settle_pending();
  // Programs spin here: looking costs no lock.
  if (queue.load(std::memory_order_acquire)->empty()) {
    const std::uint32_t in_a_row = empty_polls.load(std::memory_order_relaxed);
    empty_polls.store(in_a_row + 1, std::memory_order_relaxed);
    if (in_a_row >= kPatience) sched_yield();
    return 0;
  }
  std::lock_guard lock(polling);
  empty_polls.store(0, std::memory_order_relaxed);
  int found = 0;
  Completion completion;
  while (found < count && poll_one(completion)) {
    ibv_wc& wc = completions[found++];
    wc.wr_id = completion.wr_id;
    wc.status = static_cast<ibv_wc_status>(completion.status);
    wc.opcode = static_cast<ibv_wc_opcode>(completion.opcode);
    wc.vendor_err = completion.vendor_err;
    wc.byte_len = completion.byte_len;
    wc.imm_data = completion.imm_data;
    wc.qp_num = completion.qp_num;
    wc.src_qp = completion.src_qp;
    wc.wc_flags = completion.wc_flags;
    wc.pkey_index = completion.pkey_index;
    wc.slid = completion.slid;
    wc.sl = completion.sl;
    wc.dlid_path_bits = completion.dlid_path_bits;
  }
  return found;
}

namespace {

int poll_cq(ibv_cq* cq, int count, ibv_wc* completions) {
  return object_of(cq).poll(count, completions);
}

int req_notify_cq(ibv_cq* cq, int solicited_only) {
  CompletionQueueObject& object = object_of(cq);
  object.queue.load(std::memory_order_acquire)->arm(solicited_only != 0 ? Armed::solicited : Armed::any);
  // What was acknowledged completes now: nobody may poll before there is an event.
  if (object.pending_count.load(std::memory_order_seq_cst) != 0) object.settle_pending();
  return 0;
}

// ---- Extended polling: start_poll takes the queue's lock, end_poll gives it back ----

CompletionQueueObject& object_of(ibv_cq_ex* cq) {
  return *reinterpret_cast<CompletionQueueObject*>(cq);
}

int next_poll(ibv_cq_ex* cq) {
  CompletionQueueObject& object = object_of(cq);
  if (!object.poll_one(object.current)) return ENOENT;
  cq->wr_id = object.current.wr_id;
  cq->status = static_cast<ibv_wc_status>(object.current.status);
  return 0;
}

int start_poll(ibv_cq_ex* cq, ibv_poll_cq_attr* attr) {
  if (attr->comp_mask != 0) return EINVAL;
  CompletionQueueObject& object = object_of(cq);
  if (object.pending_count.load(std::memory_order_acquire) != 0) object.settle_pending();
  object.polling.lock();
  const int result = next_poll(cq);
  if (result != 0) object.polling.unlock();
  return result;
}

void end_poll(ibv_cq_ex* cq) {
  object_of(cq).polling.unlock();
}

void install_extended_polling(ibv_cq_ex& cq) {
  cq.start_poll = start_poll;
  cq.next_poll = next_poll;
  cq.end_poll = end_poll;
  cq.read_opcode = [](ibv_cq_ex* c) { return static_cast<ibv_wc_opcode>(object_of(c).current.opcode); };
  cq.read_vendor_err = [](ibv_cq_ex* c) { return object_of(c).current.vendor_err; };
  cq.read_byte_len = [](ibv_cq_ex* c) { return object_of(c).current.byte_len; };
  cq.read_imm_data = [](ibv_cq_ex* c) -> __be32 { return object_of(c).current.imm_data; };
  cq.read_qp_num = [](ibv_cq_ex* c) { return object_of(c).current.qp_num; };
  cq.read_src_qp = [](ibv_cq_ex* c) { return object_of(c).current.src_qp; };
  cq.read_wc_flags = [](ibv_cq_ex* c) -> unsigned { return object_of(c).current.wc_flags; };
  cq.read_slid = [](ibv_cq_ex* c) -> std::uint32_t { return object_of(c).current.slid; };
  cq.read_sl = [](ibv_cq_ex* c) { return object_of(c).current.sl; };
  cq.read_dlid_path_bits = [](ibv_cq_ex* c) { return object_of(c).current.dlid_path_bits; };
  cq.read_completion_ts = [](ibv_cq_ex* c) { return object_of(c).current.timestamp; };
}

constexpr std::uint64_t kWcFlags = std::uint64_t{IBV_WC_STANDARD_FLAGS} | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP;
constexpr std::uint32_t kMaxCqe = 1 << 18;

std::uint64_t ring_bytes(std::uint32_t slots) {
  return std::uint64_t{slots} * sizeof(CompletionSlot);
}

CompletionQueueObject* make_cq(ibv_context* context, std::uint32_t cqe, void* cq_context,
                               ibv_comp_channel* channel, std::uint32_t vector, bool timestamps) {
  if (is_gone(context)) return nullptr;
  if (cqe == 0 || cqe > kMaxCqe || vector >= static_cast<std::uint32_t>(context->num_comp_vectors)) {
    errno = EINVAL;
    return nullptr;
  }
  Process& process = Process::get();
  const std::uint32_t slots = std::bit_ceil(cqe);
  const auto ring = process.take_ring(ring_bytes(slots));
  if (!ring) {
    errno = ENOMEM;
    return nullptr;
  }
  std::unique_lock lock(process.mutex);
  const auto index = process.cq_numbers.take();
  if (!index) {
    lock.unlock();
    process.give_ring(*ring, ring_bytes(slots));
    errno = ENOMEM;
    return nullptr;
  }
  auto* object = new CompletionQueueObject;
  object->index = *index;
  object->process = &process;
  SharedCq& shared = process.arena.cqs[*index];
  object->shared = &shared;
  shared.producer = shared.seen_consumer = 0;
  shared.slots = slots;
  shared.offset = *ring;
  shared.has_channel = channel != nullptr ? 1 : 0;
  shared.wants_timestamps = timestamps ? 1 : 0;
  shared.hca = context_of(context).hca->number;
  shared.overrun = 0;
  shared.consumer = 0;
  shared.armed = 0;
  shared.channel_events = 0;
  if (channel != nullptr) {
    auto& owner = *reinterpret_cast<Channel*>(channel);
    shared.channel = owner.number;
    shared.channel_descriptor = static_cast<std::uint32_t>(channel->fd);
    std::lock_guard channel_lock(owner.mutex);
    owner.queues.push_back(object);
    ++channel->refcnt;
  }
  object->use_ring(*ring);
  if (process.arena.header.cqs < *index + 1) process.arena.header.cqs = *index + 1;
  ibv_cq_ex& cq = object->ibv;
  cq.context = context;
  cq.channel = channel;
  cq.cq_context = cq_context;
  cq.handle = *index;
  cq.cqe = static_cast<int>(slots);
  pthread_mutex_init(&cq.mutex, nullptr);
  pthread_cond_init(&cq.cond, nullptr);
  install_extended_polling(cq);
  process.cqs[*index].store(object, std::memory_order_release);
  return object;
}

ibv_cq_ex* create_cq_ex(ibv_context* context, ibv_cq_init_attr_ex* attr) {
  if ((attr->comp_mask & ~(IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD)) != 0 ||
      (attr->wc_flags & ~kWcFlags) != 0) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  if ((attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS) != 0 &&
      (attr->flags & ~static_cast<std::uint32_t>(IBV_CREATE_CQ_ATTR_SINGLE_THREADED)) != 0) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  auto* object = make_cq(context, attr->cqe, attr->cq_context, attr->channel, attr->comp_vector,
                         (attr->wc_flags & IBV_WC_EX_WITH_COMPLETION_TIMESTAMP) != 0);
  return object == nullptr ? nullptr : &object->ibv;
}

}  // namespace

void install_completion_operations(verbs_context& verbs) {
  verbs.create_cq_ex = create_cq_ex;
  verbs.context.ops.poll_cq = poll_cq;
  verbs.context.ops.req_notify_cq = req_notify_cq;
}

}  // namespace fabric::softhca

using namespace fabric::softhca;

extern "C" {

ibv_cq* ibv_create_cq(ibv_context* context, int cqe, void* cq_context, ibv_comp_channel* channel,
                      int vector) {
  PASS_ON(ibv_create_cq, context, cqe, cq_context, channel, vector);
  if (cqe < 0 || vector < 0) {
    errno = EINVAL;
    return nullptr;
  }
  auto* object = make_cq(context, static_cast<std::uint32_t>(cqe), cq_context, channel,
                         static_cast<std::uint32_t>(vector), false);
  return object == nullptr ? nullptr : reinterpret_cast<ibv_cq*>(&object->ibv);
}

int ibv_resize_cq(ibv_cq* cq, int cqe) {
  PASS_ON(ibv_resize_cq, cq, cqe);
  if (is_gone(cq->context)) return EIO;
  if (cqe <= 0 || cqe > static_cast<int>(kMaxCqe)) return EINVAL;
  CompletionQueueObject& object = object_of(cq);
  Process& process = *object.process;
  const std::uint32_t slots = std::bit_ceil(static_cast<std::uint32_t>(cqe));
  std::lock_guard polling(object.polling);
  const auto known = object.rings.find(slots);
  const auto ring = known != object.rings.end() ? std::optional(known->second.offset)
                                                : process.take_ring(ring_bytes(slots));
  if (!ring) return ENOMEM;
  object.shared->lock.lock(process.seat);
  const bool moved = object.queue.load(std::memory_order_acquire)->move_to(*ring, slots);
  if (moved) object.use_ring(*ring);
  object.shared->lock.unlock();
  if (!moved) {
    if (known == object.rings.end()) process.give_ring(*ring, ring_bytes(slots));
    return EINVAL;  // more is waiting than the new size holds
  }
  cq->cqe = static_cast<int>(slots);
  return 0;
}

int ibv_destroy_cq(ibv_cq* cq) {
  PASS_ON(ibv_destroy_cq, cq);
  if (keeps_objects(cq->context)) return EIO;
  CompletionQueueObject& object = object_of(cq);
  if (object.users.load() != 0) return EBUSY;
  Process& process = *object.process;
  {
    std::lock_guard lock(process.mutex);
    process.cqs[object.index].store(nullptr, std::memory_order_release);
  }
  forget_events(cq->context);
  if (cq->channel != nullptr) {
    auto& channel = *reinterpret_cast<Channel*>(cq->channel);
    std::lock_guard lock(channel.mutex);
    std::erase(channel.queues, &object);
    --channel.ibv.refcnt;
  }
  // Those who fetched an event of this queue still have it in their hands.
  pthread_mutex_lock(&cq->mutex);
  while (cq->comp_events_completed != object.events_fetched ||
         cq->async_events_completed != object.async_fetched)
    pthread_cond_wait(&cq->cond, &cq->mutex);
  pthread_mutex_unlock(&cq->mutex);
  for (const auto& [slots, ring] : object.rings) process.give_ring(ring.offset, ring_bytes(slots));
  {
    std::lock_guard lock(process.mutex);
    process.cq_numbers.give(object.index);
  }
  pthread_mutex_destroy(&cq->mutex);
  pthread_cond_destroy(&cq->cond);
  delete &object;
  return 0;
}

ibv_comp_channel* ibv_create_comp_channel(ibv_context* context) {
  PASS_ON(ibv_create_comp_channel, context);
  if (is_gone(context)) return nullptr;
  Process& process = Process::get();
  const int descriptor = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
  if (descriptor < 0) return nullptr;
  auto* channel = new Channel;
  channel->ibv.context = context;
  channel->ibv.fd = descriptor;
  {
    std::lock_guard lock(process.mutex);
    channel->number = process.next_channel++;
  }
  try {
    process.session.publish(channel->number, descriptor);
  } catch (const std::system_error& error) {
    close(descriptor);
    delete channel;
    errno = error.code().value();
    return nullptr;
  }
  return &channel->ibv;
}

int ibv_destroy_comp_channel(ibv_comp_channel* channel) {
  PASS_ON(ibv_destroy_comp_channel, channel);
  auto* object = reinterpret_cast<Channel*>(channel);
  {
    std::lock_guard lock(object->mutex);
    if (channel->refcnt != 0) return EBUSY;
  }
  try {
    Process::get().session.withdraw(object->number);
  } catch (const std::system_error&) {
    // The hardware is gone; nobody has a copy any more.
  }
  close(channel->fd);
  delete object;
  return 0;
}

int ibv_get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** cq_context) {
  PASS_ON(ibv_get_cq_event, channel, cq, cq_context);
  auto& object = *reinterpret_cast<Channel*>(channel);
  for (;;) {
    std::uint64_t one = 0;
    if (read(channel->fd, &one, sizeof one) != sizeof one) return -1;
    std::lock_guard lock(object.mutex);
    for (std::size_t i = 0; i < object.queues.size(); ++i) {
      CompletionQueueObject& candidate = *object.queues[(object.next + i) % object.queues.size()];
      std::uint32_t raised = candidate.shared->channel_events.load(std::memory_order_acquire);
      while (raised != 0 && !candidate.shared->channel_events.compare_exchange_weak(raised, raised - 1)) {
      }
      if (raised == 0) continue;
      object.next = (object.next + i + 1) % object.queues.size();
      pthread_mutex_lock(&candidate.ibv.mutex);
      ++candidate.events_fetched;
      pthread_mutex_unlock(&candidate.ibv.mutex);
      *cq = reinterpret_cast<ibv_cq*>(&candidate.ibv);
      *cq_context = candidate.ibv.cq_context;
      return 0;
    }
    // The event was of a queue that has been destroyed since.
  }
}

void ibv_ack_cq_events(ibv_cq* cq, unsigned count) {
  PASS_ON(ibv_ack_cq_events, cq, count);
  pthread_mutex_lock(&cq->mutex);
  cq->comp_events_completed += count;
  pthread_cond_signal(&cq->cond);
  pthread_mutex_unlock(&cq->mutex);
}

}  // extern "C"
