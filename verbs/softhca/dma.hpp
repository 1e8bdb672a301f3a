// The DMA engine's arm: copies between this process's memory and registered memory of another process.
//
// Two ways. Where the memory lies on its process's memory file (registered_memory.hpp), that is mapped here
// too and the transfer is one memcpy. Everything else goes through process_vm_writev and process_vm_readv,
// which need the same user, or the right to ptrace.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {

class Session;

/// A piece of memory of this process.
struct LocalPiece {
  void* address;
  std::size_t length;
};

/// A piece of registered memory of the process at `seat`.
struct RemotePiece {
  const SharedMr* mr;
  std::uint64_t address;  ///< in the owner's address space
  std::size_t length;
};

enum class Direction { to_remote, from_remote };

enum class DmaResult {
  done,
  gone,   ///< the process does not exist any more
  fault,  ///< the memory cannot be reached: unmapped, or not permitted
};

class Dma {
 public:
  Dma(Lab lab, Session& session, std::uint32_t own_seat)
      : lab_(lab), session_(session), own_seat_(own_seat) {}

  /// Copies min(total of local, total of remote) bytes.
  DmaResult transfer(Direction direction, std::span<const LocalPiece> local, std::uint32_t seat,
                     std::span<const RemotePiece> remote);

  /// Where registered memory can be reached by plain loads and stores from here; nullptr where it cannot.
  /// `length` is cut to what is contiguous.
  void* reach(std::uint32_t seat, const SharedMr& mr, std::uint64_t address, std::size_t& length);

 private:
  /// Address space is mapped in windows of this size.
  static constexpr unsigned kWindowBits = 32;
  static constexpr std::uint64_t kWindow = std::uint64_t{1} << kWindowBits;
  /// What of a process's memory file is mapped here.
  struct PeerMemory {
    ClientId client = 0;
    int descriptor = -1;
    std::array<std::atomic<std::byte*>, std::size_t{1} << (47 - kWindowBits)> windows{};
  };

  DmaResult copy(Direction direction, void* local, std::uint32_t seat, const SharedMr& mr,
                 std::uint64_t address, std::size_t length);
  std::byte* map_window(std::uint32_t seat, ClientId client, std::uint64_t window);
  void forget(PeerMemory* peer);

  Lab lab_;
  Session& session_;
  std::uint32_t own_seat_;
  std::array<std::atomic<PeerMemory*>, kMaxSeats> peers_{};  ///< by seat; of a process that may be gone
  std::mutex mutex_;                                         ///< of changes to it
  /// Gone processes' memory: unmapped some time later, when no thread can be in a copy any more.
  std::vector<std::pair<std::chrono::steady_clock::time_point, PeerMemory*>> gone_;
};

}  // namespace fabric::softhca
