// Receive and completion queues in shared memory: the operations on the structures of verbs_memory.hpp.
// Pure: no descriptor, no session. Whoever calls push() wakes the sleeper afterwards, outside of all locks.
#pragma once

#include <cstdint>

#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {

/// A receive ring in the arena that it belongs to.
class ReceiveQueue {
 public:
  ReceiveQueue(std::byte* arena, ReceiveRing& ring) : arena_(arena), ring_(ring) {}

  /// Bytes a ring takes in the arena; sets stride and slots.
  static std::size_t lay_out(ReceiveRing& ring, std::uint32_t max_wr, std::uint32_t max_sge);

  [[nodiscard]] std::uint32_t size() const { return ring_.tail.load(std::memory_order_acquire) - head(); }
  /// Owner: appends. False if max_wr are `waiting` already: posted and not yet seen completed, as on
  /// hardware, where polling frees the slot. One caller at a time.
  template <class Sge>
  bool post(std::uint64_t wr_id, const Sge* sges, std::uint32_t count, std::uint32_t waiting) {
    const std::uint32_t tail = ring_.tail.load(std::memory_order_relaxed);
    if (waiting >= ring_.max_wr) return false;
    ReceiveWqe& wqe = slot(tail);
    wqe.wr_id = wr_id;
    wqe.sge_count = count;
    for (std::uint32_t i = 0; i < count; ++i) wqe.sges[i] = {sges[i].addr, sges[i].length, sges[i].lkey};
    // seq_cst: the poster then looks at the queue pair's state, and who sets that to ERR then looks here.
    ring_.tail.store(tail + 1, std::memory_order_seq_cst);
    // Taken back from the cache of who has read it while the program does something else.
    __builtin_prefetch(&slot(tail + 1), 1);
    return true;
  }
  /// Under the lock: the oldest request, which stays where it is; nullptr if there is none.
  [[nodiscard]] const ReceiveWqe* front() const {
    if (ring_.seen_tail == head()) ring_.seen_tail = ring_.tail.load(std::memory_order_seq_cst);
    return ring_.seen_tail == head() ? nullptr : &slot(head());
  }
  /// Under the lock: removes the oldest.
  void pop() { ring_.head.store(head() + 1, std::memory_order_release); }
  /// Under the lock: makes `wqe` the oldest again.
  void put_back(const ReceiveWqe& wqe);
  /// Under the lock: forgets all requests.
  void clear() {
    ring_.seen_tail = ring_.tail.load(std::memory_order_acquire);
    ring_.head.store(ring_.seen_tail, std::memory_order_release);
  }
  /// Under the lock: the next request is fetched into the cache, for the next message.
  void prefetch() const { __builtin_prefetch(&slot(head())); }

 private:
  [[nodiscard]] std::uint32_t head() const { return ring_.head.load(std::memory_order_acquire); }
  [[nodiscard]] ReceiveWqe& slot(std::uint32_t number) const {
    return *reinterpret_cast<ReceiveWqe*>(arena_ + ring_.offset +
                                          std::size_t{ring_.stride} * (number & (ring_.slots - 1)));
  }
  std::byte* arena_;
  ReceiveRing& ring_;
};

/// Bytes of a ReceiveWqe with that many scatter entries.
constexpr std::size_t wqe_bytes(std::uint32_t sges) {
  return offsetof(ReceiveWqe, sges) + sizeof(SharedSge) * sges;
}

/// A completion queue in the arena of `seat`.
class CompletionQueue {
 public:
  CompletionQueue(Lab lab, std::uint32_t seat, std::uint32_t index)
      : cq_(lab.arena(seat).cqs[index]), arena_(lab.arena_bytes(seat)) {}

  struct Pushed {
    bool overrun = false;  ///< did not fit; the queue is in error from now on (IBV_EVENT_CQ_ERR)
    bool wake = false;     ///< it was armed for this: the caller writes to the channel, then calls woken()
  };
  /// Appends a completion on behalf of `seat`. With a journal, reap() can tell whether it was appended.
  Pushed push(std::uint32_t seat, const Completion& completion, bool solicited,
              ReceiveJournal* journal = nullptr);
  void woken() { cq_.waker.store(0, std::memory_order_release); }

  /// Consumer: the next completion (of that kind) raises an event.
  void arm(Armed what) { cq_.armed.store(static_cast<std::uint32_t>(what), std::memory_order_seq_cst); }
  /// Consumer, under the lock and alone: moves what is waiting to the ring of that size. False if it does not
  /// fit.
  bool move_to(std::uint64_t offset, std::uint32_t slots);
  /// Consumer, under the lock and alone: drops what a queue pair that goes away has left (RESET, destroy).
  /// How many of them were of receive requests.
  std::uint32_t forget(std::uint32_t qp_num);

  /// reap(): the lock's owner has died. Does not unlock.
  void repair();

 protected:
  /// Under the lock, or where the queue cannot be resized meanwhile.
  [[nodiscard]] CompletionSlot& slot(std::uint32_t number) const {
    return reinterpret_cast<CompletionSlot*>(arena_ + cq_.offset)[number & (cq_.slots - 1)];
  }
  SharedCq& cq_;
  std::byte* arena_;
};

/// As its consumer sees it. Kept, and made anew after move_to: where the ring is, stands in the line that
/// producers write.
class ConsumedQueue : public CompletionQueue {
 public:
  ConsumedQueue(Lab lab, std::uint32_t seat, std::uint32_t index)
      : CompletionQueue(lab, seat, index), ring_(&slot(0)), mask_(cq_.slots - 1) {}
  /// One caller at a time.
  bool pop(Completion& completion);
  [[nodiscard]] bool empty() const;

 private:
  [[nodiscard]] CompletionSlot& next(std::uint32_t number) const { return ring_[number & mask_]; }
  CompletionSlot* ring_;
  std::uint32_t mask_;
};

/// A receive queue being flushed, or a queue pair being repaired, has to tell somebody.
struct FlushOutcome {
  bool overrun = false;
  bool wake = false;
};
/// Under the queue pair's lock, which `seat` holds: completes every waiting receive request with
/// IBV_WC_WR_FLUSH_ERR. `owner` is the seat of the queue pair. An SRQ's requests stay.
FlushOutcome flush_receive_queue(Lab lab, std::uint32_t owner, SharedQp& qp, std::uint32_t qpn,
                                 std::uint32_t seat);

/// reap(): `dead` held the lock of this queue pair of `owner`. Finishes or undoes the delivery; keeps the
/// lock.
void repair_receive_side(Lab lab, std::uint32_t owner, SharedQp& qp, std::uint32_t dead);

}  // namespace fabric::softhca
