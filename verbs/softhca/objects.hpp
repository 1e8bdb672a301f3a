// What the handles of libibverbs are here. Each begins with the public structure, so that a pointer to one is
// a pointer to the other.
//
// Locking: QueuePair::mutex (the send queue) before everything that the wire locks (verbs_memory.hpp), before
// CompletionQueueObject::pending_mutex. CompletionQueueObject::settling before QueuePair::mutex.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "verbs/softhca/engine.hpp"
#include "verbs/softhca/process.hpp"
#include "verbs/softhca/queues.hpp"
#include "verbs/softhca/spin_lock.hpp"
#include "verbs/softhca/wire.hpp"

namespace fabric::softhca {

struct Device {
  ibv_device ibv{};
  /// Providers look behind an ibv_device for their own operations (mlx5dv_is_supported does): they find none.
  std::array<std::uint64_t, 128> no_provider{};
  const HcaDescription* hca = nullptr;
};

struct Context {
  verbs_context verbs{};
  const HcaDescription* hca = nullptr;
  std::uint32_t insertion = 0;  ///< of the adapter, when it was opened
  std::mutex events;            ///< readers of asynchronous events
  [[nodiscard]] SharedPort* port(unsigned number) const {
    if (number == 0 || number > hca->ports.size()) return nullptr;
    return &Process::get().lab.port(hca->ports[number - 1]);
  }
};
inline Context& context_of(ibv_context* context) {
  return *reinterpret_cast<Context*>(reinterpret_cast<std::byte*>(context) -
                                     offsetof(verbs_context, context));
}

/// Whether the adapter is not the one any more that was opened; errno is EIO then.
bool is_gone(ibv_context* context);
/// The same, for destroying: an object whose kernel side is gone stays, unless the user has asked otherwise.
bool keeps_objects(ibv_context* context);

struct ProtectionDomain {
  ibv_pd ibv{};
  std::atomic<std::uint32_t> users{0};
};

struct MemoryRegion {
  ibv_mr ibv{};
  std::uint32_t index = 0;
  std::uint64_t iova = 0;
  unsigned access = 0;
};

struct MemoryWindow {
  ibv_mw ibv{};
  std::uint32_t index = 0;
};

struct AddressHandle {
  ibv_ah ibv{};
  Route route;
  std::uint8_t port = 0;
};

struct CompletionQueueObject;

struct Channel {
  ibv_comp_channel ibv{};
  std::uint32_t number = 0;
  std::mutex mutex;
  std::vector<CompletionQueueObject*> queues;
  std::size_t next = 0;  ///< whose turn it is to report an event
};

struct CompletionQueueObject {
  ibv_cq_ex ibv{};
  std::uint32_t index = 0;
  SharedCq* shared = nullptr;
  Process* process = nullptr;
  std::atomic<std::uint32_t> users{0};
  std::uint32_t events_fetched = 0, async_fetched = 0;  ///< under ibv.mutex
  SpinLock polling;
  std::atomic<ConsumedQueue*> queue{nullptr};  ///< consuming: under `polling`
  struct Ring {
    std::uint64_t offset = 0;  ///< in the arena
    ConsumedQueue queue;
  };
  /// Those that it ever had, by their slots. They stay until it goes: somebody may just be looking whether
  /// the one before is empty.
  std::map<std::uint32_t, Ring> rings;
  Completion current;  ///< of the extended polling calls
  std::atomic<std::uint32_t> empty_polls{0};
  // Queue pairs whose sends have been acknowledged and not yet completed.
  SpinLock settling;
  SpinLock pending_mutex;
  std::vector<QueuePair*> pending;
  std::atomic<std::uint32_t> pending_count{0};

  /// The shared queue has this ring now.
  void use_ring(std::uint64_t offset) {
    const auto known =
        rings.try_emplace(shared->slots, Ring{offset, ConsumedQueue(process->lab, process->seat, index)})
            .first;
    queue.store(&known->second.queue, std::memory_order_release);
  }
  /// The acknowledgements that have arrived become completions.
  void settle_pending();
  /// Fills at most `count`; returns how many.
  int poll(int count, ibv_wc* completions);
  bool poll_one(Completion& completion);
};
inline CompletionQueueObject& object_of(ibv_cq* cq) {
  return *reinterpret_cast<CompletionQueueObject*>(cq);
}

struct SharedReceiveQueue {
  ibv_srq ibv{};
  std::uint32_t index = 0;
  SharedSrq* shared = nullptr;
  Process* process = nullptr;
  std::uint64_t ring_bytes = 0;
  std::atomic<std::uint32_t> users{0};
  std::uint32_t async_fetched = 0;
  SpinLock posting;
  std::uint32_t posted = 0;                 ///< under `posting`
  std::atomic<std::uint32_t> completed{0};  ///< of the posted, those whose completion has been polled
};
inline SharedReceiveQueue& object_of(ibv_srq* srq) {
  return *reinterpret_cast<SharedReceiveQueue*>(srq);
}

/// Waits until nobody is in a delivery that may have seen a memory key that was just taken away.
void quiesce(Process& process);

/// What IBV_WR_BIND_MW is to do.
struct WindowBinding {
  std::uint64_t address, length;  ///< length 0: unbind
  std::uint32_t window, region;   ///< indexes of their entries
  std::uint32_t region_key, new_key;
  std::uint32_t access;
};

/// A posted send request.
struct SendWqe {
  std::uint64_t wr_id;
  std::uint64_t remote_address, compare_add, swap;
  std::uint64_t
      arrives;  ///< delayed cables: CLOCK_MONOTONIC ns, the message; once delivered, its acknowledgement
  std::uint32_t length, psn, packets, imm_data, rkey;
  std::uint32_t remote_qpn, remote_qkey;
  std::uint32_t sges;
  std::uint8_t opcode;
  bool signaled, solicited, inlined;
  bool managed;  ///< a request about memory keys, which is done here, has been done
};

struct QueuePair {
  ibv_qp_ex ibv{};
  std::uint32_t index = 0;
  SharedQp* shared = nullptr;
  Process* process = nullptr;
  CompletionQueueObject *send_cq = nullptr, *recv_cq = nullptr;
  ibv_qp_attr attributes{};
  ibv_qp_init_attr created{};
  std::uint32_t async_fetched = 0;  ///< under ibv.qp_base.mutex
  std::uint64_t ring_bytes = 0;
  SpinLock posting;  ///< of receive requests
  std::uint32_t posted = 0;
  std::atomic<std::uint32_t> completed{0};  ///< as in SharedReceiveQueue

  // The send queue. Counters run freely: freed <= acked <= next <= launched <= tail.
  SpinLock mutex;
  std::vector<SendWqe> send_queue;
  std::vector<SharedSge> send_sges;     ///< max_send_sge per slot
  std::vector<std::byte> send_inline;   ///< max_inline_data per slot
  std::vector<Route> send_routes;       ///< UD: one per slot
  std::vector<WindowBinding> bindings;  ///< others: one per slot
  std::uint32_t slots = 0;              ///< a power of two
  std::uint32_t tail = 0;               ///< posted
  std::uint32_t launched = 0;           ///< on the cable (delayed cables; otherwise with `next`)
  std::uint32_t next = 0;               ///< to be delivered next
  std::uint32_t acked = 0;              ///< completed
  std::atomic<std::uint32_t> freed{0};  ///< slots before this one can be used again
  std::uint32_t next_psn = 0;
  std::uint64_t flight_epoch = 0;  ///< of the cable, when the oldest unacknowledged message left
  std::uint64_t chance = 0;        ///< state of the generator that decides what is lost
  enum class Waiting : std::uint8_t { no, for_response, for_receiver };
  Waiting waiting = Waiting::no;
  std::uint32_t retries = 0, rnr_retries = 0;
  bool pending = false;  ///< in send_cq->pending
  bool overran = false;  ///< a completion did not fit into send_cq
  // Extended posting (ibv_wr_*): requests collected between wr_start and wr_complete.
  struct Batch;
  Batch* batch = nullptr;

  struct Timer : Task {
    QueuePair* qp = nullptr;
    void due() override;
  } timer;

  [[nodiscard]] std::uint32_t number() const { return ibv.qp_base.qp_num; }
  [[nodiscard]] ibv_qp_state state() const {
    return static_cast<ibv_qp_state>(shared->state.load(std::memory_order_acquire) - 1);
  }
  /// Its adapter is not there any more: nothing happens from now on.
  [[nodiscard]] bool stands_still() const { return !process->lab.attached(*shared); }
  /// A receive request's place is free again, in the queue that it was taken from.
  void receive_completed(std::uint32_t count = 1);
  int post_send(ibv_send_wr* wr, ibv_send_wr** bad);
  /// All requests of the list, or none.
  int post_batch(ibv_send_wr* wr);
  void discard_batch();
  int post_receive(ibv_recv_wr* wr, ibv_recv_wr** bad);
  /// Under `mutex`: delivers what can be delivered.
  void advance();
  /// Under `mutex`: what has been acknowledged completes; at a dead cable, a part of it.
  void settle();
  /// Under `mutex`: to ERR (or SQE), and both queues are flushed.
  void enter_error(ibv_qp_state to = IBV_QPS_ERR);
  /// Under `mutex`: as posted.
  void reset_send_queue();

 private:
  int append(const ibv_send_wr& wr);
  /// Delivers request `next`. False if the queue has to wait, or has failed.
  bool transmit();
  bool gather(const SendWqe& wqe, std::uint32_t slot, Message& message, ibv_wc_status& error);
  ibv_wc_status manage_memory(const SendWqe& wqe, std::uint32_t slot);
  ibv_wc_status bind_window(const WindowBinding& binding);
  void launch();
  void wait_for(Waiting what, std::uint64_t nanoseconds);
  void complete(const SendWqe& wqe, std::uint32_t number, ibv_wc_status status);
  void fail_next(ibv_wc_status status);
  void flush();
  std::uint64_t random();
};
inline void QueuePair::receive_completed(std::uint32_t count) {
  if (ibv_srq* srq = ibv.qp_base.srq)
    object_of(srq).completed.fetch_add(count, std::memory_order_release);
  else  // the pollers of one completion queue take turns
    completed.store(completed.load(std::memory_order_relaxed) + count, std::memory_order_release);
}
inline QueuePair& object_of(ibv_qp* qp) {
  return *reinterpret_cast<QueuePair*>(qp);
}

/// Under Context::events: drops events of objects that do not exist any more from the front of the queue, so
/// that a readable descriptor means an event that can be had. True if there is one; errno otherwise.
bool discard_stale_events(Context& context);

/// After an object has gone: its events are not to be seen any more.
inline void forget_events(ibv_context* context) {
  std::lock_guard lock(context_of(context).events);
  discard_stale_events(context_of(context));
}

/// Functions of the operations tables, defined with their objects.
void install_memory_operations(verbs_context& verbs);
void install_completion_operations(verbs_context& verbs);
void install_queue_pair_operations(verbs_context& verbs);
void install_extended_posting(QueuePair& qp, std::uint64_t operations);

}  // namespace fabric::softhca
