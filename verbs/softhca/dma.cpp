#include "verbs/softhca/dma.hpp"

#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace fabric::softhca {
namespace {

void complain_once(std::uint32_t pid, int error) {
  static std::atomic_flag said;
  if (!said.test_and_set())
    std::fprintf(stderr, "softhca: cannot reach the memory of process %u: %s\n", pid, std::strerror(error));
}

}  // namespace

void* Dma::reach(std::uint32_t seat, const SharedMr&, std::uint64_t address, std::size_t&) {
  if (seat == own_seat_) return reinterpret_cast<void*>(address);
  return nullptr;
}

DmaResult Dma::copy(Direction direction, void* local, std::uint32_t seat, const SharedMr& mr,
                    std::uint64_t address, std::size_t length) {
  while (length > 0) {
    std::size_t reachable = length;
    if (void* remote = reach(seat, mr, address, reachable)) {
      if (direction == Direction::to_remote)
        std::memmove(remote, local, reachable);
      else
        std::memmove(local, remote, reachable);
    } else {
      const std::uint32_t pid = lab_.seat(seat).pid.load(std::memory_order_relaxed);
      const iovec here{local, reachable};
      const iovec there{reinterpret_cast<void*>(address), reachable};
      const ssize_t moved = direction == Direction::to_remote
                                ? process_vm_writev(static_cast<pid_t>(pid), &here, 1, &there, 1, 0)
                                : process_vm_readv(static_cast<pid_t>(pid), &here, 1, &there, 1, 0);
      if (moved <= 0) {
        if (moved < 0 && errno == ESRCH) return DmaResult::gone;
        complain_once(pid, moved < 0 ? errno : EFAULT);
        return DmaResult::fault;
      }
      reachable = static_cast<std::size_t>(moved);
    }
    local = static_cast<std::byte*>(local) + reachable;
    address += reachable;
    length -= reachable;
  }
  return DmaResult::done;
}

DmaResult Dma::transfer(Direction direction, std::span<const LocalPiece> local, std::uint32_t seat,
                        std::span<const RemotePiece> remote) {
  std::size_t l = 0, r = 0, l_done = 0, r_done = 0;
  while (l < local.size() && r < remote.size()) {
    const std::size_t length = std::min(local[l].length - l_done, remote[r].length - r_done);
    const DmaResult result = copy(direction, static_cast<std::byte*>(local[l].address) + l_done, seat,
                                  *remote[r].mr, remote[r].address + r_done, length);
    if (result != DmaResult::done) return result;
    l_done += length;
    r_done += length;
    if (l_done == local[l].length) ++l, l_done = 0;
    if (r < remote.size() && r_done == remote[r].length) ++r, r_done = 0;
  }
  return DmaResult::done;
}

}  // namespace fabric::softhca
