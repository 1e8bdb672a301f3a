// What a process has of the software HCA: its session, its seat in the verbs area, the wire, and the thread
// for slow paths. Made when the first device list is asked for; a child made by fork() makes its own.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "verbs/softhca/engine.hpp"
#include "verbs/softhca/registered_memory.hpp"
#include "verbs/softhca/session.hpp"
#include "verbs/softhca/verbs_memory.hpp"
#include "verbs/softhca/wire.hpp"

namespace fabric::softhca {

struct Device;
struct QueuePair;
struct CompletionQueueObject;
struct SharedReceiveQueue;

/// Numbers 0..limit-1 for objects; a freed one comes back as late as possible.
class Numbers {
 public:
  explicit Numbers(std::uint32_t limit) : used_(limit) {}
  std::optional<std::uint32_t> take();
  void give(std::uint32_t number) { used_[number] = false; }

 private:
  std::vector<bool> used_;
  std::uint32_t next_ = 0;
};

/// First fit over the part of the arena that holds rings.
class RingSpace {
 public:
  RingSpace(std::uint64_t begin, std::uint64_t end) { free_.emplace(begin, end - begin); }
  /// Offset of `bytes` bytes, 64-byte aligned, or nullopt.
  std::optional<std::uint64_t> take(std::uint64_t bytes);
  void give(std::uint64_t offset, std::uint64_t bytes);

 private:
  std::map<std::uint64_t, std::uint64_t> free_;  ///< offset, length
};

class Process {
 public:
  /// The one of this process. Throws std::system_error (Session::get, or ENOSPC: no seat).
  static Process& get();
  /// $SOFTHCA_SOCKET is set: this library is in charge. Otherwise every call goes to the real library.
  static bool enabled();

  Session& session;
  Lab lab;
  std::uint32_t seat;
  Arena& arena;
  Wire wire;
  Engine engine;

  /// Guards the allocators and tables below.
  std::mutex mutex;
  Numbers qp_numbers{kMaxQps}, cq_numbers{kMaxCqs}, srq_numbers{kMaxSrqs}, mr_numbers{kMaxMrs};
  RegisteredMemory memory;
  RingSpace rings{kArenaRings, kArenaSize};
  std::uint32_t next_pd = 1, next_channel = 1;
  std::vector<std::atomic<QueuePair*>> qps{kMaxQps};
  std::vector<std::atomic<CompletionQueueObject*>> cqs{kMaxCqs};
  std::vector<std::atomic<SharedReceiveQueue*>> srqs{kMaxSrqs};
  std::vector<std::unique_ptr<Device>> devices;

  /// A ring of `bytes` zero bytes; nullopt where the arena is full.
  std::optional<std::uint64_t> take_ring(std::uint64_t bytes);
  void give_ring(std::uint64_t offset, std::uint64_t bytes);

 private:
  Process();
};

}  // namespace fabric::softhca
