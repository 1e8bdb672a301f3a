#include "verbs/softhca/queues.hpp"

#include <infiniband/verbs.h>
#include <sched.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <ctime>
#include <vector>

namespace fabric::softhca {
namespace {

std::uint64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

// ---- Receive queues ----

std::size_t ReceiveQueue::lay_out(ReceiveRing& ring, std::uint32_t max_wr, std::uint32_t max_sge) {
  ring.max_wr = max_wr;
  ring.max_sge = max_sge;
  ring.slots = std::bit_ceil(std::max(max_wr, 1U)) * 2;
  ring.stride = static_cast<std::uint32_t>((wqe_bytes(max_sge) + 31) / 32 * 32);
  return std::size_t{ring.slots} * ring.stride;
}

void ReceiveQueue::put_back(const ReceiveWqe& wqe) {
  ring_.head.store(head() - 1, std::memory_order_release);
  std::memcpy(static_cast<void*>(&slot(head())), &wqe, wqe_bytes(wqe.sge_count));
}

// ---- Completion queues ----

CompletionQueue::Pushed CompletionQueue::push(std::uint32_t seat, const Completion& completion,
                                              bool solicited, ReceiveJournal* journal) {
  cq_.lock.lock(seat);
  const std::uint32_t number = cq_.producer;
  if (number - cq_.seen_consumer >= cq_.slots) {
    cq_.seen_consumer = cq_.consumer.load(std::memory_order_acquire);
    if (number - cq_.seen_consumer >= cq_.slots) {
      cq_.lock.unlock();
      return {.overrun = cq_.overrun.exchange(1) == 0, .wake = false};
    }
  }
  if (journal != nullptr) {
    journal->cq_entry = number;
    journal->cq_known.store(1, std::memory_order_release);
  }
  CompletionSlot& entry = slot(number);
  entry.completion = completion;
  if (cq_.wants_timestamps != 0) entry.completion.timestamp = monotonic_ns();
  const bool has_channel = cq_.has_channel != 0;
  // Publishing and then looking whether the queue is armed pairs with arming and then polling.
  entry.sequence.store(number + 1, has_channel ? std::memory_order_seq_cst : std::memory_order_release);
  cq_.producer = number + 1;
  cq_.lock.unlock();
  if (!has_channel) return {};

  const auto armed = static_cast<Armed>(cq_.armed.load(std::memory_order_seq_cst));
  const bool fires = armed == Armed::any ||
                     (armed == Armed::solicited && (solicited || completion.status != IBV_WC_SUCCESS));
  if (!fires) return {};
  cq_.waker.store(seat, std::memory_order_release);
  if (cq_.armed.exchange(static_cast<std::uint32_t>(Armed::no), std::memory_order_acq_rel) ==
      static_cast<std::uint32_t>(Armed::no)) {
    woken();
    return {};
  }
  cq_.channel_events.fetch_add(1, std::memory_order_release);
  return {.overrun = false, .wake = true};
}

bool ConsumedQueue::pop(Completion& completion) {
  const std::uint32_t number = cq_.consumer.load(std::memory_order_relaxed);
  CompletionSlot& entry = next(number);
  if (entry.sequence.load(std::memory_order_seq_cst) != number + 1) return false;
  completion = entry.completion;
  cq_.consumer.store(number + 1, std::memory_order_release);
  return true;
}

bool ConsumedQueue::empty() const {
  const std::uint32_t number = cq_.consumer.load(std::memory_order_relaxed);
  return next(number).sequence.load(std::memory_order_seq_cst) != number + 1;
}

bool CompletionQueue::move_to(std::uint64_t offset, std::uint32_t slots) {
  auto* ring = reinterpret_cast<CompletionSlot*>(arena_ + offset);
  const std::uint32_t first = cq_.consumer.load(std::memory_order_relaxed);
  if (slots == cq_.slots) return true;
  if (cq_.producer - first > slots) return false;
  // A ring that it had before has old entries.
  for (std::uint32_t i = 0; i < slots; ++i) ring[i].sequence.store(0, std::memory_order_relaxed);
  for (std::uint32_t number = first; number != cq_.producer; ++number) {
    ring[number & (slots - 1)].completion = slot(number).completion;
    ring[number & (slots - 1)].sequence.store(number + 1, std::memory_order_relaxed);
  }
  cq_.offset = offset;
  cq_.slots = slots;
  return true;
}

std::uint32_t CompletionQueue::forget(std::uint32_t qp_num) {
  const std::uint32_t first = cq_.consumer.load(std::memory_order_relaxed);
  std::vector<Completion> kept;
  std::uint32_t receives = 0;
  for (std::uint32_t number = first; number != cq_.producer; ++number) {
    const Completion& completion = slot(number).completion;
    if (completion.qp_num != qp_num)
      kept.push_back(completion);
    else
      receives += completion.is_send ? 0 : 1;
  }
  // The survivors move to the end, so that the producer's count, which journals refer to, stays.
  const std::uint32_t start = cq_.producer - static_cast<std::uint32_t>(kept.size());
  for (std::uint32_t i = 0; i < kept.size(); ++i) slot(start + i).completion = kept[i];
  cq_.consumer.store(start, std::memory_order_release);
  return receives;
}

void CompletionQueue::repair() {
  if (slot(cq_.producer).sequence.load(std::memory_order_acquire) == cq_.producer + 1) ++cq_.producer;
}

// ---- Queue pairs ----

FlushOutcome flush_receive_queue(Lab lab, std::uint32_t owner, SharedQp& qp, std::uint32_t qpn,
                                 std::uint32_t seat) {
  FlushOutcome outcome;
  if (qp.srq != kNone) return outcome;
  ReceiveQueue queue(lab.arena_bytes(owner), qp.receive);
  CompletionQueue cq(lab, owner, qp.recv_cq);
  while (const ReceiveWqe* wqe = queue.front()) {
    qp.journal.head = qp.receive.head;
    qp.journal.cq_known.store(0, std::memory_order_relaxed);
    qp.journal.busy.store(1, std::memory_order_release);
    const auto pushed = cq.push(seat,
                                {.wr_id = wqe->wr_id,
                                 .qp_num = qpn,
                                 .status = IBV_WC_WR_FLUSH_ERR,
                                 .opcode = static_cast<std::uint8_t>(IBV_WC_RECV)},
                                false, &qp.journal);
    queue.pop();
    qp.journal.busy.store(0, std::memory_order_release);
    outcome.overrun |= pushed.overrun;
    outcome.wake |= pushed.wake;
  }
  return outcome;
}

void repair_receive_side(Lab lab, std::uint32_t owner, SharedQp& qp, std::uint32_t dead) {
  ReceiveJournal& journal = qp.journal;
  if (journal.busy.load(std::memory_order_acquire) == 0) return;
  const bool completed = journal.cq_known.load(std::memory_order_acquire) != 0 &&
                         lab.arena(owner).cqs[qp.recv_cq].producer != journal.cq_entry;
  if (qp.srq == kNone) {
    if (completed) qp.receive.head = journal.head + 1;
  } else if (!completed) {
    SharedSrq& srq = lab.arena(owner).srqs[qp.srq];
    // Popping takes nanoseconds; a holder that does not let go is stopped, and the hardware does not wait for
    // it: then this one buffer stays lost.
    if (srq.lock.owner() == dead || srq.lock.lock_for_a_while(dead)) {
      // Where the dead still holds the SRQ's lock it may not have come to the pop.
      if (srq.receive.head != journal.head)
        ReceiveQueue(lab.arena_bytes(owner), srq.receive).put_back(journal.taken);
      srq.lock.unlock();
    }
  }
  journal.busy.store(0, std::memory_order_release);
}

}  // namespace fabric::softhca
