// Receive and completion queues in shared memory, and what reap() makes of a process that died in the middle.
#include <gtest/gtest.h>
#include <infiniband/verbs.h>
#include <sys/mman.h>

#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "verbs/softhca/queues.hpp"

namespace fabric::softhca {
namespace {

/// A lab's memory, as the hardware process makes it, with one process at each of two seats.
class Queues : public testing::Test {
 protected:
  static constexpr ClientId kOwnerClient = 7, kSenderClient = 8;

  Queues() : size_(sizeof(LabMemory) + kPage + verbs_area_size()) {
    base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = static_cast<LabMemory*>(base_);
    const std::size_t offset = (sizeof(LabMemory) + kPage - 1) / kPage * kPage;
    area_ = {static_cast<std::byte*>(base_) + offset, verbs_area_size()};
    prepare_verbs_area(*memory_, area_);
    lab_ = Lab(*memory_, area_);
    owner_ = take_seat(lab_, kOwnerClient, 1);
    sender_ = take_seat(lab_, kSenderClient, 2);
    make_cq(0, 16);
    queue_.emplace(lab_, owner_, 0);
    make_qp(0, 8, kNone);
  }
  ~Queues() override { munmap(base_, size_); }

  Arena& arena() { return lab_.arena(owner_); }
  SharedQp& qp() { return arena().qps[0]; }
  SharedCq& cq() { return arena().cqs[0]; }
  ConsumedQueue& queue() { return *queue_; }
  ReceiveQueue receives() { return {lab_.arena_bytes(owner_), qp().receive}; }
  ReceiveQueue shared_receives() { return {lab_.arena_bytes(owner_), arena().srqs[0].receive}; }

  void make_cq(std::uint32_t index, std::uint32_t slots) {
    SharedCq& made = arena().cqs[index];
    made.slots = slots;
    made.offset = kArenaRings;
    arena().header.cqs = index + 1;
  }
  void make_ring(ReceiveRing& ring, std::uint32_t max_wr, std::uint64_t offset) {
    ring.offset = offset;
    ReceiveQueue::lay_out(ring, max_wr, 2);
  }
  void make_qp(std::uint32_t index, std::uint32_t max_wr, std::uint32_t srq) {
    SharedQp& made = arena().qps[index];
    made.state = IBV_QPS_RTS + 1;
    made.recv_cq = 0;
    made.srq = srq;
    if (srq == kNone) make_ring(made.receive, max_wr, kArenaRings + (64 << 10));
    arena().header.qps = index + 1;
  }
  void make_srq(std::uint32_t max_wr) {
    make_ring(arena().srqs[0].receive, max_wr, kArenaRings + (128 << 10));
    arena().header.srqs = 1;
    qp().srq = 0;
  }
  bool post(ReceiveQueue to, std::uint64_t id) {
    const ibv_sge sge{id * 64, 64, 5};
    return to.post(id, &sge, 1, to.size());
  }
  std::optional<std::uint64_t> polled() {
    Completion completion;
    if (!queue().pop(completion)) return std::nullopt;
    return completion.wr_id;
  }
  Completion completion(std::uint64_t id) { return {.wr_id = id, .qp_num = qp_number(owner_, 0)}; }

  std::size_t size_;
  void* base_ = nullptr;
  LabMemory* memory_ = nullptr;
  std::span<std::byte> area_;
  Lab lab_;
  std::uint32_t owner_ = 0, sender_ = 0;
  std::optional<ConsumedQueue> queue_;
};

TEST_F(Queues, SeatsAreDifferentAndComeBackLate) {
  EXPECT_NE(owner_, sender_);
  reap(*memory_, area_, kSenderClient);
  EXPECT_FALSE(lab_.live(sender_));
  EXPECT_NE(take_seat(lab_, 9, 3), sender_);
}

TEST_F(Queues, NamesCarrySeatAndIndex) {
  for (const std::uint32_t seat : {1U, 512U, 1023U})
    for (const std::uint32_t index : {0U, 77U, kMaxQps - 1}) {
      EXPECT_EQ(qp_seat(qp_number(seat, index)), seat);
      EXPECT_EQ(qp_index(qp_number(seat, index)), index);
      EXPECT_LT(qp_number(seat, index), 1U << 24);
      EXPECT_EQ(key_seat(memory_key(seat, index, 300)), seat);
      EXPECT_EQ(key_index(memory_key(seat, index, 300)), index);
    }
}

TEST_F(Queues, ReceiveRequestsInOrderAndNoMoreThanAllowed) {
  for (std::uint64_t round = 0; round < 5; ++round) {
    for (std::uint64_t id = 0; id < 8; ++id) EXPECT_TRUE(post(receives(), 100 * round + id));
    EXPECT_FALSE(post(receives(), 999));
    for (std::uint64_t id = 0; id < 8; ++id) {
      const ReceiveWqe* wqe = receives().front();
      ASSERT_NE(wqe, nullptr);
      EXPECT_EQ(wqe->wr_id, 100 * round + id);
      EXPECT_EQ(wqe->sges[0].address, wqe->wr_id * 64);
      receives().pop();
    }
    EXPECT_EQ(receives().front(), nullptr);
  }
}

TEST_F(Queues, CompletionsInOrderOverManyRounds) {
  std::uint64_t next = 0;
  for (std::uint64_t id = 0; id < 1000; ++id) {
    EXPECT_FALSE(queue().push(sender_, completion(id), false).overrun);
    if (id % 16 == 15) {
      while (const auto got = polled()) EXPECT_EQ(*got, next++);
    }
  }
  while (const auto got = polled()) EXPECT_EQ(*got, next++);
  EXPECT_EQ(next, 1000U);
}

TEST_F(Queues, OverrunIsToldOnce) {
  for (std::uint64_t id = 0; id < 16; ++id)
    EXPECT_FALSE(queue().push(sender_, completion(id), false).overrun);
  EXPECT_TRUE(queue().push(sender_, completion(16), false).overrun);
  EXPECT_FALSE(queue().push(sender_, completion(17), false).overrun);
  EXPECT_EQ(cq().producer, 16U);
}

TEST_F(Queues, WakesOnceWhenArmed) {
  cq().has_channel = 1;
  EXPECT_FALSE(queue().push(sender_, completion(1), false).wake);
  queue().arm(Armed::any);
  EXPECT_TRUE(queue().push(sender_, completion(2), false).wake);
  EXPECT_FALSE(queue().push(sender_, completion(3), false).wake);
  queue().arm(Armed::solicited);
  EXPECT_FALSE(queue().push(sender_, completion(4), false).wake);
  EXPECT_TRUE(queue().push(sender_, completion(5), true).wake);
  queue().arm(Armed::solicited);
  Completion failed = completion(6);
  failed.status = IBV_WC_LOC_LEN_ERR;
  EXPECT_TRUE(queue().push(sender_, failed, false).wake);
}

TEST_F(Queues, ForgetDropsOneQueuePairsCompletionsOnly) {
  for (std::uint64_t id = 0; id < 10; ++id) {
    Completion entry = completion(id);
    entry.qp_num = id % 2 == 0 ? 1 : 2;
    queue().push(sender_, entry, false);
  }
  EXPECT_EQ(queue().forget(1), 5U);
  for (const std::uint64_t id : {1, 3, 5, 7, 9}) EXPECT_EQ(polled(), id);
  EXPECT_EQ(polled(), std::nullopt);
  queue().push(sender_, completion(11), false);
  EXPECT_EQ(polled(), 11U);
}

TEST_F(Queues, MovesToALargerRing) {
  for (std::uint64_t id = 0; id < 13; ++id) {
    queue().push(sender_, completion(id), false);
    if (id < 3) polled();
  }
  const std::uint64_t offset = kArenaRings + (256 << 10);
  ASSERT_TRUE(queue().move_to(offset, 64));
  queue_.emplace(lab_, owner_, 0);
  for (std::uint64_t id = 13; id < 60; ++id)
    EXPECT_FALSE(queue().push(sender_, completion(id), false).overrun);
  for (std::uint64_t id = 3; id < 60; ++id) EXPECT_EQ(polled(), id);
}

TEST_F(Queues, FlushCompletesEverythingWithAnError) {
  for (std::uint64_t id = 0; id < 5; ++id) post(receives(), id);
  qp().lock.lock(owner_);
  flush_receive_queue(lab_, owner_, qp(), qp_number(owner_, 0), owner_);
  qp().lock.unlock();
  Completion entry;
  for (std::uint64_t id = 0; id < 5; ++id) {
    ASSERT_TRUE(queue().pop(entry));
    EXPECT_EQ(entry.wr_id, id);
    EXPECT_EQ(entry.status, IBV_WC_WR_FLUSH_ERR);
  }
  EXPECT_FALSE(queue().pop(entry));
}

/// A delivery as the wire does it, which stops dead after `steps` steps.
void deliver(Lab lab, std::uint32_t owner, std::uint32_t sender, SharedQp& qp, int steps) {
  const auto dead = [&] { return steps-- == 0; };
  std::byte* bytes = lab.arena_bytes(owner);
  Arena& arena = lab.arena(owner);
  SharedCq& cq = arena.cqs[qp.recv_cq];
  if (dead()) return;
  qp.lock.lock(sender);
  if (dead()) return;
  qp.journal.cq_known = 0;
  std::uint64_t id = 0;
  if (qp.srq == kNone) {
    id = ReceiveQueue(bytes, qp.receive).front()->wr_id;
    qp.journal.head = qp.receive.head.load();
    qp.journal.busy = 1;
  } else {
    SharedSrq& srq = arena.srqs[qp.srq];
    ReceiveQueue queue(bytes, srq.receive);
    srq.lock.lock(sender);
    if (dead()) return;
    const ReceiveWqe& wqe = *queue.front();
    std::memcpy(static_cast<void*>(&qp.journal.taken), &wqe, wqe_bytes(wqe.sge_count));
    id = wqe.wr_id;
    qp.journal.head = srq.receive.head.load();
    if (dead()) return;
    qp.journal.busy = 1;
    if (dead()) return;
    queue.pop();
    if (dead()) return;
    srq.lock.unlock();
  }
  if (dead()) return;
  // CompletionQueue::push, step by step.
  cq.lock.lock(sender);
  if (dead()) return;
  qp.journal.cq_entry = cq.producer;
  if (dead()) return;
  qp.journal.cq_known = 1;
  if (dead()) return;
  auto* slots = reinterpret_cast<CompletionSlot*>(bytes + cq.offset);
  CompletionSlot& slot = slots[cq.producer & (cq.slots - 1)];
  slot.completion.wr_id = id;
  if (dead()) return;
  slot.sequence = cq.producer + 1;
  if (dead()) return;
  ++cq.producer;
  if (dead()) return;
  cq.lock.unlock();
  if (dead()) return;
  if (qp.srq == kNone) ReceiveQueue(bytes, qp.receive).pop();
  if (dead()) return;
  qp.journal.busy = 0;
  if (dead()) return;
  qp.lock.unlock();
}
constexpr int kSteps = 20;

TEST_F(Queues, ASenderThatDiesAnywhereLeavesEachRequestInOnePlace) {
  for (const bool shared : {false, true}) {
    if (shared) make_srq(8);
    for (int steps = 0; steps < kSteps; ++steps) {
      SCOPED_TRACE(testing::Message()
                   << (shared ? "shared" : "own") << " receive queue, dies after " << steps);
      ReceiveQueue queue_of_requests = shared ? shared_receives() : receives();
      for (std::uint64_t id = 0; id < 4; ++id) ASSERT_TRUE(post(queue_of_requests, id));
      const ClientId client = 100 + static_cast<ClientId>(steps);
      const std::uint32_t seat = take_seat(lab_, client, 3);
      deliver(lab_, owner_, seat, qp(), steps);
      reap(*memory_, area_, client);
      EXPECT_EQ(qp().lock.owner(), 0U);
      EXPECT_EQ(cq().lock.owner(), 0U);
      EXPECT_EQ(arena().srqs[0].lock.owner(), 0U);
      // Others go on: each request is completed exactly once, in order.
      const std::uint64_t first = polled().value_or(~0ULL);
      std::uint64_t next = 0;
      if (first != ~0ULL) {
        EXPECT_EQ(first, 0U);
        next = 1;
      }
      while (queue_of_requests.front() != nullptr) {
        deliver(lab_, owner_, sender_, qp(), -1);
        EXPECT_EQ(polled(), next++);
      }
      EXPECT_EQ(next, 4U);
      EXPECT_EQ(polled(), std::nullopt);
    }
  }
}

TEST_F(Queues, DeadQueuePairsAnswerNobody) {
  reap(*memory_, area_, kOwnerClient);
  EXPECT_EQ(qp().state, 0U);
  EXPECT_FALSE(lab_.live(owner_));
}

TEST_F(Queues, AnArenaThatSomebodyWritesToIsKeptUntilHeIsDone) {
  qp().lock.lock(sender_);
  reap(*memory_, area_, kOwnerClient);
  EXPECT_EQ(lab_.seat(owner_).client, kOwnerClient);
  EXPECT_NE(cq().slots, 0U);
  qp().lock.unlock();
  reap(*memory_, area_, kSenderClient);
  EXPECT_EQ(lab_.seat(owner_).client, 0U);
  EXPECT_EQ(cq().slots, 0U);
}

}  // namespace
}  // namespace fabric::softhca
