// The DMA engine's arm: copies between this process's memory and registered memory of another process.
//
// Two ways. Where the memory lies on a shared memory object (a region, see register_region), the object is
// mapped here too and the transfer is one memcpy. Everything else goes through process_vm_writev and
// process_vm_readv, which need the same user, or the right to ptrace.
#pragma once

#include <cstdint>
#include <span>

#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {

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
  Dma(Lab lab, std::uint32_t own_seat) : lab_(lab), own_seat_(own_seat) {}

  /// Copies min(total of local, total of remote) bytes.
  DmaResult transfer(Direction direction, std::span<const LocalPiece> local, std::uint32_t seat,
                     std::span<const RemotePiece> remote);

  /// Where registered memory can be reached by plain loads and stores from here; nullptr where it cannot.
  /// `length` is cut to what is contiguous.
  void* reach(std::uint32_t seat, const SharedMr& mr, std::uint64_t address, std::size_t& length);

 private:
  DmaResult copy(Direction direction, void* local, std::uint32_t seat, const SharedMr& mr,
                 std::uint64_t address, std::size_t length);
  Lab lab_;
  std::uint32_t own_seat_;
};

}  // namespace fabric::softhca
