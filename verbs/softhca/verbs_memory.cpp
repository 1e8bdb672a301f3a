#include "verbs/softhca/verbs_memory.hpp"

#include <infiniband/verbs.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "verbs/softhca/queues.hpp"
#include "verbs/softhca/spin_lock.hpp"

namespace fabric::softhca {
namespace {

/// Calls visit(arena, seat) for every process that has memory in the lab, except at seat `skip`.
template <class Visit>
void for_each_arena(Lab lab, std::uint32_t skip, Visit visit) {
  for (std::uint32_t seat = 1; seat < kMaxSeats; ++seat)
    if (seat != skip && lab.seat(seat).client.load(std::memory_order_acquire) != 0)
      visit(lab.arena(seat), seat);
}

/// Somebody is in the middle of a delivery to one of these queue pairs.
bool being_written(const Arena& arena, std::uint32_t own_seat) {
  const auto count = arena.header.qps.load(std::memory_order_acquire);
  return std::any_of(arena.qps.begin(), arena.qps.begin() + count, [&](const SharedQp& qp) {
    const std::uint32_t owner = qp.lock.owner();
    return owner != 0 && owner != own_seat;
  });
}

/// Gives back the memory of dead processes that nobody writes to any more.
void bury(Lab lab) {
  for (std::uint32_t number = 1; number < kMaxSeats; ++number) {
    Seat& seat = lab.seat(number);
    if (seat.pid.load(std::memory_order_acquire) != kNone || being_written(lab.arena(number), number))
      continue;
    if (madvise(lab.arena_bytes(number), kArenaSize, MADV_REMOVE) != 0)
      std::memset(lab.arena_bytes(number), 0, kArenaRings);  // not a shared mapping: a test's plain memory
    seat.pid.store(0, std::memory_order_relaxed);
    seat.client.store(0, std::memory_order_release);
  }
}

/// Writes to an eventfd of another process. The usual wakers have imported it; for this rare case the
/// hardware process reaches for it. One event too many does no harm: ibv_get_cq_event looks for a queue that
/// has one.
void wake_sleeper(std::uint32_t pid, std::uint32_t descriptor) {
  const auto process = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (process < 0) return;
  const auto copy = static_cast<int>(syscall(SYS_pidfd_getfd, process, descriptor, 0));
  if (copy >= 0) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(copy, &one, sizeof one);
    close(copy);
  }
  close(process);
}

}  // namespace

void OwnerLock::wait(std::uint32_t seat) {
  for (unsigned spins = 0;; ++spins) {
    std::uint32_t expected = 0;
    if (word_.load(std::memory_order_relaxed) == 0 &&
        word_.compare_exchange_strong(expected, seat, std::memory_order_seq_cst))
      return;
    if (spins < kSpins)
      __builtin_ia32_pause();
    else
      sched_yield();
  }
}

namespace {

/// Under VerbsHeader::collecting.
void collect(Lab lab, SharedQp& qp) {
  Traffic& traffic = qp.traffic;
  std::array<std::uint64_t, Traffic::kinds> fresh;
  for (unsigned kind = 0; kind < Traffic::kinds; ++kind) {
    const std::uint64_t caused = traffic.caused[kind].load(std::memory_order_relaxed);
    fresh[kind] = caused - traffic.collected[kind];
    traffic.collected[kind] = caused;
  }
  const std::uint32_t port = traffic.port.load(std::memory_order_relaxed);
  const std::uint32_t peer = traffic.peer.load(std::memory_order_relaxed);
  if (fresh[Traffic::out_packets] == 0) return;
  SharedCounters& here = lab.port(port).counters;
  SharedCounters& there = lab.port(peer).counters;
  const auto unicast = fresh[Traffic::out_packets] - fresh[Traffic::out_multicast];
  here.xmit_data += fresh[Traffic::out_octets];
  here.xmit_packets += fresh[Traffic::out_packets];
  here.unicast_xmit_packets += unicast;
  here.multicast_xmit_packets += fresh[Traffic::out_multicast];
  here.rcv_data += fresh[Traffic::back_octets];
  here.rcv_packets += fresh[Traffic::back_packets];
  here.unicast_rcv_packets += fresh[Traffic::back_packets];
  there.rcv_data += fresh[Traffic::out_octets];
  there.rcv_packets += fresh[Traffic::out_packets];
  there.unicast_rcv_packets += unicast;
  there.multicast_rcv_packets += fresh[Traffic::out_multicast];
  there.xmit_data += fresh[Traffic::back_octets];
  there.xmit_packets += fresh[Traffic::back_packets];
  there.unicast_xmit_packets += fresh[Traffic::back_packets];
}

void collect_arena(Lab lab, Arena& arena) {
  const std::uint32_t count = arena.header.qps.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < count; ++i) collect(lab, arena.qps[i]);
}

}  // namespace

void collect_traffic(Lab lab, std::uint32_t seat, SharedQp& qp) {
  if (!lab.header().collecting.lock_for_a_while(seat)) return;
  collect(lab, qp);
  lab.header().collecting.unlock();
}

void collect_traffic(Lab lab, std::uint32_t seat) {
  if (!lab.header().collecting.lock_for_a_while(seat)) return;
  for_each_arena(lab, 0, [&](Arena& arena, std::uint32_t) { collect_arena(lab, arena); });
  lab.header().collecting.unlock();
}

std::uint32_t take_seat(Lab lab, ClientId client, std::uint32_t pid) {
  for (std::uint32_t attempt = 0; attempt < 2 * kMaxSeats; ++attempt) {
    const std::uint32_t number = 1 + lab.header().last_seat.fetch_add(1) % (kMaxSeats - 1);
    Seat& seat = lab.seat(number);
    ClientId nobody = 0;
    if (!seat.client.compare_exchange_strong(nobody, client)) continue;
    seat.pid.store(pid, std::memory_order_relaxed);
    seat.live.store(1, std::memory_order_release);
    return number;
  }
  return 0;
}

bool OwnerLock::lock_for_a_while(std::uint32_t seat) {
  for (unsigned tries = 0; tries < 10'000; ++tries) {
    if (try_lock(seat)) return true;
    sched_yield();
  }
  return false;
}

std::size_t verbs_area_size() {
  return kArenasOffset + kArenaSize * kMaxSeats;
}

void prepare_verbs_area(LabMemory&, std::span<std::byte>) {
  // All zero is an area where nobody sits.
}

void reap(LabMemory& memory, std::span<std::byte> area, ClientId client) {
  const Lab lab(memory, area);
  std::uint32_t dead = 1;
  while (dead < kMaxSeats && lab.seat(dead).client.load(std::memory_order_acquire) != client) ++dead;
  if (dead == kMaxSeats) return;  // it never used verbs

  lab.seat(dead).live.store(0, std::memory_order_release);
  Arena& own = lab.arena(dead);
  if (lab.header().collecting.owner() == dead) lab.header().collecting.unlock();
  collect_traffic(lab, kHardwareSeat);
  const std::uint32_t own_qps = own.header.qps.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < own_qps; ++i) own.qps[i].state.store(0, std::memory_order_seq_cst);

  // Completion queues first, but their locks stay held until the queue pairs have been repaired: whether a
  // receive request was completed is read off the queue's producer count.
  for_each_arena(lab, dead, [&](Arena& arena, std::uint32_t seat) {
    const auto count = arena.header.cqs.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < count; ++i)
      if (arena.cqs[i].lock.owner() == dead) CompletionQueue(lab, seat, i).repair();
  });
  for_each_arena(lab, dead, [&](Arena& arena, std::uint32_t seat) {
    const auto qps = arena.header.qps.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < qps; ++i)
      if (arena.qps[i].lock.owner() == dead) repair_receive_side(lab, seat, arena.qps[i], dead);
    const auto srqs = arena.header.srqs.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < srqs; ++i)
      if (arena.srqs[i].lock.owner() == dead) arena.srqs[i].lock.unlock();
    const auto cqs = arena.header.cqs.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < cqs; ++i)
      if (arena.cqs[i].lock.owner() == dead) arena.cqs[i].lock.unlock();
    if (arena.header.atomics.owner() == dead) arena.header.atomics.unlock();
    // Last the queue pairs: a flush that had begun is finished.
    for (std::uint32_t i = 0; i < qps; ++i) {
      SharedQp& qp = arena.qps[i];
      if (qp.lock.owner() != dead) continue;
      if (qp.state.load(std::memory_order_acquire) == IBV_QPS_ERR + 1)
        flush_receive_queue(lab, seat, qp, qp_number(seat, i), dead);
      qp.lock.unlock();
    }
    // A sleeper that it was about to wake, or that the flush above should wake.
    for (std::uint32_t i = 0; i < cqs; ++i) {
      SharedCq& cq = arena.cqs[i];
      if (cq.waker.load(std::memory_order_acquire) != dead) continue;
      if (cq.channel_events.load(std::memory_order_acquire) == 0) cq.channel_events.store(1);
      wake_sleeper(lab.seat(seat).pid.load(std::memory_order_relaxed), cq.channel_descriptor);
      cq.waker.store(0, std::memory_order_release);
    }
  });
  lab.seat(dead).pid.store(kNone, std::memory_order_release);  // from here on bury() may take it
  bury(lab);
}

}  // namespace fabric::softhca
