// The verbs part of the lab's shared memory: what a software HCA's queues look like to those who write into
// them from other processes.
//
// Layout. The area begins with VerbsHeader, which has a seat for each process that uses verbs; then comes one
// arena per seat. A process allocates its objects in its own arena only, so there is no shared allocator that
// a dying process could leave broken. A QP number and an R_Key name the seat and the index in its tables;
// everybody finds everything by arithmetic. The area is huge and sparse: only touched pages cost memory. All
// zero means "nothing there", so a reaped arena is a punched hole.
//
// Who writes what. A QP's receive side (SharedQp::lock and what it protects) is run by whoever sends to it:
// the poster of a work request plays the DMA engine. A completion queue has many producers (under its lock)
// and one consumer process. Locks are words with the owner's seat; a process dies at any instruction, and
// reap() in the hardware process then finishes or undoes what it was doing, from the journal in the QP.
//
// Lock order: SharedQp::lock, SharedSrq::lock, SharedCq::lock. At most one of each is held at a time.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "verbs/softhca/lab_memory.hpp"

namespace fabric::softhca {

inline constexpr std::uint32_t kMaxSeats = 1024;   ///< processes of a lab at a time; seat 0 is nobody's
inline constexpr std::uint32_t kMaxQps = 1 << 14;  ///< per process, as the rest
inline constexpr std::uint32_t kMaxMrs = 1 << 14;  ///< memory regions and windows
inline constexpr std::uint32_t kMaxCqs = 1 << 13;
inline constexpr std::uint32_t kMaxSrqs = 1 << 11;
inline constexpr std::uint32_t kMaxSge = 16;
inline constexpr std::uint32_t kMaxQpMulticast = 8;  ///< groups a QP can be attached to
inline constexpr std::uint32_t kMaxAtomicResults = 16;
inline constexpr std::uint32_t kNone = 0xFFFFFFFF;
inline constexpr std::size_t kPage = 4096;
/// Under this key each process publishes its memory file; completion channels have keys from 1 on.
inline constexpr std::uint64_t kMemoryFile = 0;

/// Mutual exclusion between processes; the word is the owner's seat. Waiting spins, then yields: what is
/// done under these locks takes microseconds. An owner that died is replaced by reap(). Taking it is seq_cst:
/// a deliverer locks a queue pair and then looks at its state, reap() takes the state away and then looks at
/// the lock, and one of the two sees the other.
class OwnerLock {
 public:
  void lock(std::uint32_t seat) {
    std::uint32_t expected = 0;
    if (word_.compare_exchange_strong(expected, seat, std::memory_order_seq_cst)) return;
    wait(seat);
  }
  bool try_lock(std::uint32_t seat) {
    std::uint32_t expected = 0;
    return word_.compare_exchange_strong(expected, seat, std::memory_order_seq_cst);
  }
  /// For those who must not wait for a process that has been stopped: gives up after some milliseconds.
  bool lock_for_a_while(std::uint32_t seat);
  void unlock() { word_.store(0, std::memory_order_release); }
  [[nodiscard]] std::uint32_t owner() const { return word_.load(std::memory_order_seq_cst); }

 private:
  void wait(std::uint32_t seat);
  std::atomic<std::uint32_t> word_;
};

struct SharedSge {
  std::uint64_t address;
  std::uint32_t length;
  std::uint32_t lkey;
};

struct ReceiveWqe {
  std::uint64_t wr_id;
  std::uint32_t sge_count;
  std::uint32_t reserved;
  std::array<SharedSge, kMaxSge> sges;  ///< in a ring only as many as the ring was made for
};

/// Receive work requests in a ring of the arena. The owner appends at `tail`; who holds the lock of the
/// object that the ring belongs to takes at `head`. Slots are twice what may be posted, so that a request
/// that a dying process had taken can be put back in front (put_back). Three cache lines, so that owner and
/// taker each keep theirs: neither looks at the other's for every message.
struct ReceiveRing {
  alignas(64) std::uint64_t offset;  ///< of the first slot, in the arena
  std::uint32_t stride;              ///< bytes per slot
  std::uint32_t slots;               ///< a power of two
  std::uint32_t max_wr, max_sge;
  alignas(64) std::atomic<std::uint32_t> head;  ///< written under the lock
  std::uint32_t seen_tail;                      ///< last look at `tail`, under the lock
  alignas(64) std::atomic<std::uint32_t> tail;
};

/// What ibv_poll_cq is to say.
struct Completion {
  std::uint64_t wr_id = 0;
  std::uint64_t timestamp = 0;  ///< CLOCK_MONOTONIC in ns; 0 where the queue does not want any
  std::uint32_t byte_len = 0, imm_data = 0, qp_num = 0, src_qp = 0, vendor_err = 0;
  std::uint32_t wqe_index = 0;  ///< send completions: the slot that is free with this one and all before it
  std::uint16_t pkey_index = 0, slid = 0;
  std::uint8_t status = 0, opcode = 0, wc_flags = 0, sl = 0, dlid_path_bits = 0;
  bool is_send = false;
};

struct alignas(64) CompletionSlot {
  Completion completion;
  /// Number of this entry counted from 1: valid when it is the one that the consumer expects.
  std::atomic<std::uint32_t> sequence;
};
static_assert(sizeof(CompletionSlot) == 64);

enum class Armed : std::uint32_t { no, solicited, any };

struct alignas(64) SharedCq {
  OwnerLock lock;
  std::uint32_t producer;       ///< entries ever written
  std::uint32_t seen_consumer;  ///< last look at `consumer`
  std::uint32_t slots;          ///< a power of two
  std::uint64_t offset;         ///< of the ring, in the arena
  std::uint32_t has_channel;
  std::uint32_t wants_timestamps;
  std::uint32_t hca;                   ///< number of the HCA in the host, for events
  std::uint32_t channel;               ///< number of its completion channel, never used twice in a process
  std::uint32_t channel_descriptor;    ///< of the channel, in its process
  std::atomic<std::uint32_t> overrun;  ///< an entry did not fit: the queue is in error from now on
  alignas(64) std::atomic<std::uint32_t> consumer;  ///< entries ever taken
  alignas(64) std::atomic<std::uint32_t> armed;     ///< enum Armed
  std::atomic<std::uint32_t> channel_events;        ///< raised and not yet fetched by ibv_get_cq_event
  std::atomic<std::uint32_t> waker;                 ///< seat of who has disarmed it and is about to wake
};

/// Remote access to registered memory. `key` 0: none. Everything else is written before `key` and stays until
/// the owner has waited for those who might still be using it (quiesce).
struct alignas(64) SharedMr {
  std::atomic<std::uint32_t> key;
  std::uint32_t pd;
  std::uint32_t access;
  std::uint32_t qp_num;  ///< a type 2 window is bound to this QP; 0 otherwise
  std::uint64_t iova;    ///< address that work requests use
  std::uint64_t length;
  std::uint64_t address;  ///< where it is in the owner's address space
  /// The part of it, in the owner's address space, that lies on the owner's memory file
  /// (registered_memory.hpp).
  std::uint64_t shared_begin, shared_end;
  std::uint32_t window_type;  ///< enum ibv_mw_type; 0: a region
  std::uint32_t region;       ///< a window's: index of the region that it is bound to
  std::uint32_t variant;      ///< counts the uses of this entry
};

struct MulticastMembership {
  std::array<std::uint8_t, 16> gid;
  std::uint32_t in_use;
  std::uint32_t lid;
};

/// What was under way on a QP's receive side, for reap(). Written by the holder of the QP's lock.
struct ReceiveJournal {
  std::uint32_t head;      ///< of the ring when the request was taken
  std::uint32_t cq_entry;  ///< SharedCq::producer before its completion; valid if `cq_known`
  std::atomic<std::uint32_t> cq_known;
  std::atomic<std::uint32_t> busy;  ///< 1: taken, not yet finished
  ReceiveWqe taken;                 ///< copy, where the request came from an SRQ
};

struct AtomicResult {
  std::uint32_t psn, valid;
  std::uint64_t value;
};

/// What a queue pair has caused on a cable: requests and what they carry from `port` to `peer`, and what
/// READ and atomics bring back. Only the owner writes, under its send lock, so that a message costs no atomic
/// operation and no cache line that somebody else writes; collect_traffic() moves it to the ports' counters.
struct Traffic {
  enum Kind { out_octets, out_packets, out_multicast, back_octets, back_packets, kinds };
  std::atomic<std::uint32_t> port, peer;
  std::array<std::atomic<std::uint64_t>, kinds> caused;
  /// What of it is in the ports' counters already.
  alignas(64) std::array<std::uint64_t, kinds> collected;
};

struct alignas(64) SharedQp {
  // How it was set up. Written by the owner under `lock`.
  std::atomic<std::uint32_t> state;  ///< 0: no such QP; otherwise enum ibv_qp_state + 1
  std::uint32_t type;                ///< enum ibv_qp_type
  std::uint32_t port;                ///< index of its SharedPort
  std::uint32_t peer_qpn;            ///< RC, UC
  std::uint32_t peer_lid;
  std::uint32_t qkey;
  std::uint32_t pkey_index;
  std::uint32_t path_mtu;  ///< bytes
  std::uint32_t access;
  std::uint32_t pd;
  std::uint32_t recv_cq, srq;  ///< indexes in the same arena; srq kNone: its own ring
  std::uint32_t min_rnr_timer, max_dest_rd_atomic;
  std::uint32_t send_cq;
  std::uint32_t flags;      ///< enum ibv_qp_create_flags
  std::uint32_t hca;        ///< number of the HCA in the host
  std::uint32_t insertion;  ///< of the adapter that it was made on (SharedPort)
  // The receive side, run by senders under `lock`.
  alignas(64) OwnerLock lock;
  std::uint32_t expected_psn;
  std::uint32_t msn;
  std::uint32_t established;  ///< IBV_EVENT_COMM_EST raised
  ReceiveRing receive;
  alignas(64) Traffic traffic;
  std::array<AtomicResult, kMaxAtomicResults> atomic_results;
  std::uint32_t atomic_results_next;
  std::atomic<std::uint32_t> multicast_count;
  std::array<MulticastMembership, kMaxQpMulticast> multicast;
  alignas(64) ReceiveJournal journal;
};

struct alignas(64) SharedSrq {
  OwnerLock lock;
  std::uint32_t pd;
  std::atomic<std::uint32_t> in_use;
  std::atomic<std::uint32_t> limit;  ///< 0: not armed
  ReceiveRing receive;
};

/// Starts each arena.
struct ArenaHeader {
  std::atomic<std::uint32_t> qps, cqs, srqs, mrs;  ///< highest index in use + 1, for those who scan
  std::atomic<std::uint32_t> multicast_qps;        ///< QPs attached to some group
  OwnerLock atomics;  ///< remote atomics on the process's memory are atomic towards each other
};

struct Arena {
  ArenaHeader header;
  alignas(kPage) std::array<SharedQp, kMaxQps> qps;
  alignas(kPage) std::array<SharedCq, kMaxCqs> cqs;
  alignas(kPage) std::array<SharedSrq, kMaxSrqs> srqs;
  alignas(kPage) std::array<SharedMr, kMaxMrs> mrs;
};
inline constexpr std::size_t kArenaSize = std::size_t{128} << 20;
inline constexpr std::size_t kArenaRings = (sizeof(Arena) + kPage - 1) / kPage * kPage;  ///< first ring byte
static_assert(kArenaRings < kArenaSize / 2);

/// A process that uses verbs.
struct alignas(64) Seat {
  std::atomic<ClientId> client;     ///< who sits here; 0 free
  std::atomic<std::uint32_t> live;  ///< 0: the arena is being set up, or its owner is dead
  std::atomic<std::uint32_t> pid;
};

/// A port's transmitter where the cable has a rate: time (CLOCK_MONOTONIC, ns) until which it is busy.
struct alignas(64) SharedTransmitter {
  std::atomic<std::uint64_t> busy_until;
};

struct VerbsHeader {
  std::atomic<std::uint32_t> last_seat;  ///< seats are given out in turn, so that one is reused late
  OwnerLock collecting;                  ///< of traffic; see collect_traffic()
  std::array<SharedTransmitter, kMaxPorts> transmitters;
  std::array<Seat, kMaxSeats> seats;
};

inline constexpr std::size_t kArenasOffset = (sizeof(VerbsHeader) + kPage - 1) / kPage * kPage;

// ---- Names ----

/// QP number: 10 bits seat, 14 bits index. Seats count from 1, so no number is below 16384.
constexpr std::uint32_t qp_number(std::uint32_t seat, std::uint32_t index) {
  return seat << 14 | index;
}
constexpr std::uint32_t qp_seat(std::uint32_t qpn) {
  return qpn >> 14 & 0x3FF;
}
constexpr std::uint32_t qp_index(std::uint32_t qpn) {
  return qpn & 0x3FFF;
}
/// Memory key: 10 bits seat, 14 bits index, and the 8 bits that change each time, so that a stale key is
/// caught.
constexpr std::uint32_t memory_key(std::uint32_t seat, std::uint32_t index, std::uint32_t variant) {
  return seat << 22 | index << 8 | (variant & 0xFF);
}
constexpr std::uint32_t key_seat(std::uint32_t key) {
  return key >> 22;
}
constexpr std::uint32_t key_index(std::uint32_t key) {
  return key >> 8 & 0x3FFF;
}

/// The mapped lab memory, as one process sees it.
class Lab {
 public:
  Lab() = default;
  Lab(LabMemory& memory, std::span<std::byte> area) : memory_(&memory), area_(area.data()) {}
  [[nodiscard]] LabMemory& memory() const { return *memory_; }
  [[nodiscard]] SharedPort& port(std::uint32_t index) const { return memory_->ports[index]; }
  [[nodiscard]] VerbsHeader& header() const { return *reinterpret_cast<VerbsHeader*>(area_); }
  [[nodiscard]] Seat& seat(std::uint32_t number) const { return header().seats[number]; }
  [[nodiscard]] std::byte* arena_bytes(std::uint32_t seat) const {
    return area_ + kArenasOffset + kArenaSize * seat;
  }
  [[nodiscard]] Arena& arena(std::uint32_t seat) const {
    return *reinterpret_cast<Arena*>(arena_bytes(seat));
  }
  /// Whether the adapter that a queue pair was made on is still there, as far as it is bound to a port.
  [[nodiscard]] bool attached(const SharedQp& qp) const {
    return qp.port == kNoSharedPort ||
           port(qp.port).insertion.load(std::memory_order_acquire) == qp.insertion;
  }
  [[nodiscard]] bool live(std::uint32_t seat) const {
    return header().seats[seat].live.load(std::memory_order_acquire) != 0;
  }

 private:
  LabMemory* memory_ = nullptr;
  std::byte* area_ = nullptr;
};

/// Takes a seat for this process; 0 when all are taken.
std::uint32_t take_seat(Lab lab, ClientId client, std::uint32_t pid);

/// Moves what queue pairs have caused to the counters of the ports: of one queue pair, whose owner is about
/// to use another port or cable, or of all, before somebody reads counters. `seat`: who does it. Left undone
/// where another process has stopped in the middle of it.
void collect_traffic(Lab lab, std::uint32_t seat, SharedQp& qp);
void collect_traffic(Lab lab, std::uint32_t seat);
/// The hardware process as the owner of a lock.
inline constexpr std::uint32_t kHardwareSeat = kMaxSeats;

// ---- For the hardware process ----

/// Bytes that the hardware process reserves for the area. Pages that nobody touches cost nothing.
[[nodiscard]] std::size_t verbs_area_size();

/// Called once by the hardware process, on zeroed memory, before the first client.
void prepare_verbs_area(LabMemory& memory, std::span<std::byte> area);

/// The process is gone: finishes or undoes what it was doing to others, releases its locks, and its queue
/// pairs stop answering. Its memory is given back as soon as nobody is writing to it.
void reap(LabMemory& memory, std::span<std::byte> area, ClientId client);

}  // namespace fabric::softhca
