#include "verbs/softhca/process.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "verbs/softhca/objects.hpp"
#include "verbs/softhca/real_library.hpp"

namespace fabric::softhca {
namespace {

std::mutex process_mutex;
std::atomic<Process*> process{nullptr};

std::uint32_t take_seat_or_throw(Lab lab, ClientId client) {
  const std::uint32_t seat = take_seat(lab, client, static_cast<std::uint32_t>(getpid()));
  if (seat == 0) throw std::system_error(ENOSPC, std::generic_category(), "too many processes use this lab");
  return seat;
}

}  // namespace

std::optional<std::uint32_t> Numbers::take() {
  for (std::size_t tries = 0; tries < used_.size(); ++tries) {
    const std::uint32_t number = next_;
    next_ = (next_ + 1) % static_cast<std::uint32_t>(used_.size());
    if (used_[number]) continue;
    used_[number] = true;
    return number;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> RingSpace::take(std::uint64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < bytes) continue;
    const std::uint64_t offset = it->first, rest = it->second - bytes;
    free_.erase(it);
    if (rest > 0) free_.emplace(offset + bytes, rest);
    return offset;
  }
  return std::nullopt;
}

void RingSpace::give(std::uint64_t offset, std::uint64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  auto after = free_.upper_bound(offset);
  if (after != free_.end() && offset + bytes == after->first) {
    bytes += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace(offset, bytes);
}

bool Process::enabled() {
  static const bool set = [] {
    const char* socket = std::getenv("SOFTHCA_SOCKET");
    return socket != nullptr && *socket != '\0';
  }();
  return set;
}

Process& Process::get() {
  if (Process* known = process.load(std::memory_order_acquire)) return *known;
  std::lock_guard lock(process_mutex);
  if (Process* known = process.load(std::memory_order_acquire)) return *known;
  static std::once_flag fork_handlers;
  std::call_once(fork_handlers, [] {
    // The parent's queues are the parent's: a child that wants to use the adapter begins anew.
    pthread_atfork([] { process_mutex.lock(); }, [] { process_mutex.unlock(); },
                   [] {
                     process.store(nullptr, std::memory_order_release);
                     process_mutex.unlock();
                   });
  });
  auto* made = new Process;  // lives as long as the process: other threads may use it during exit()
  process.store(made, std::memory_order_release);
  return *made;
}

Process::Process()
    : session(Session::get()),
      lab(session.memory(), session.verbs_area()),
      seat(take_seat_or_throw(lab, session.client())),
      arena(lab.arena(seat)),
      wire(lab, session, seat) {
  for (const HcaDescription& hca : session.hcas()) {
    auto device = std::make_unique<Device>();
    device->hca = &hca;
    device->ibv._ops._dummy2 = mark_as_ours;
    device->ibv.node_type = IBV_NODE_CA;
    device->ibv.transport_type = IBV_TRANSPORT_IB;
    std::snprintf(device->ibv.name, sizeof device->ibv.name, "%s", hca.name.c_str());
    std::snprintf(device->ibv.dev_name, sizeof device->ibv.dev_name, "uverbs%u", hca.number);
    std::snprintf(device->ibv.dev_path, sizeof device->ibv.dev_path, "/sys/class/infiniband_verbs/uverbs%u",
                  hca.number);
    std::snprintf(device->ibv.ibdev_path, sizeof device->ibv.ibdev_path, "/sys/class/infiniband/%s",
                  hca.name.c_str());
    devices.push_back(std::move(device));
  }
}

std::optional<std::uint64_t> Process::take_ring(std::uint64_t bytes) {
  std::optional<std::uint64_t> offset;
  {
    std::lock_guard lock(mutex);
    offset = rings.take(bytes);
  }
  if (offset) std::memset(lab.arena_bytes(seat) + *offset, 0, bytes);
  return offset;
}

void Process::give_ring(std::uint64_t offset, std::uint64_t bytes) {
  // Whole pages go back to the machine.
  const std::uint64_t begin = (offset + kPage - 1) / kPage * kPage, end = (offset + bytes) / kPage * kPage;
  if (begin < end) madvise(lab.arena_bytes(seat) + begin, end - begin, MADV_REMOVE);
  std::lock_guard lock(mutex);
  rings.give(offset, bytes);
}

}  // namespace fabric::softhca
