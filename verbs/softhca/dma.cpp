#include "verbs/softhca/dma.hpp"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "verbs/softhca/session.hpp"

namespace fabric::softhca {
namespace {

void complain_once(std::uint32_t pid, int error) {
  static std::atomic_flag said;
  if (!said.test_and_set())
    std::fprintf(stderr, "softhca: cannot reach the memory of process %u: %s\n", pid, std::strerror(error));
}

}  // namespace

void* Dma::reach(std::uint32_t seat, const SharedMr& mr, std::uint64_t address, std::size_t& length) {
  if (seat == own_seat_) return reinterpret_cast<void*>(address);
  if (address < mr.shared_begin) {
    length = std::min<std::uint64_t>(length, mr.shared_begin - address);
    return nullptr;
  }
  if (address >= mr.shared_end) return nullptr;
  const std::uint64_t offset = address & (kWindow - 1);
  length = std::min({std::uint64_t{length}, mr.shared_end - address, kWindow - offset});
  const ClientId client = lab_.seat(seat).client.load(std::memory_order_relaxed);
  const PeerMemory* peer = peers_[seat].load(std::memory_order_acquire);
  std::byte* window = peer != nullptr && peer->client == client
                          ? peer->windows[address >> kWindowBits].load(std::memory_order_acquire)
                          : nullptr;
  if (window == nullptr) window = map_window(seat, client, address >> kWindowBits);
  return window == nullptr ? nullptr : window + offset;
}

std::byte* Dma::map_window(std::uint32_t seat, ClientId client, std::uint64_t number) {
  std::lock_guard lock(mutex_);
  PeerMemory* peer = peers_[seat].load(std::memory_order_relaxed);
  if (peer == nullptr || peer->client != client) {
    if (peer != nullptr) forget(peer);
    peer = new PeerMemory;
    peer->client = client;
    try {
      peer->descriptor = session_.import(client, kMemoryFile);
    } catch (const std::system_error&) {
      peer->descriptor = -1;
    }
    peers_[seat].store(peer, std::memory_order_release);
  }
  if (peer->descriptor < 0) return nullptr;
  if (std::byte* known = peer->windows[number].load(std::memory_order_relaxed)) return known;
  void* mapped = mmap(nullptr, kWindow, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, peer->descriptor,
                      static_cast<off_t>(number << kWindowBits));
  if (mapped == MAP_FAILED) return nullptr;
  madvise(mapped, kWindow, MADV_DONTDUMP);
  peer->windows[number].store(static_cast<std::byte*>(mapped), std::memory_order_release);
  return static_cast<std::byte*>(mapped);
}

void Dma::forget(PeerMemory* peer) {
  const auto now = std::chrono::steady_clock::now();
  gone_.emplace_back(now, peer);
  while (now - gone_.front().first > std::chrono::seconds(10)) {
    PeerMemory* old = gone_.front().second;
    for (const auto& window : old->windows)
      if (std::byte* mapped = window.load(std::memory_order_relaxed)) munmap(mapped, kWindow);
    if (old->descriptor >= 0) close(old->descriptor);
    delete old;
    gone_.erase(gone_.begin());
  }
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
