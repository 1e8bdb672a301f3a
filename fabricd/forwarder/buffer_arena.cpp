#include "fabricd/forwarder/buffer_arena.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

namespace fabric::daemon {

void BufferArena::Unmap::operator()(std::byte* memory) const noexcept {
  munmap(memory, size);
}

BufferArena::BufferArena(std::size_t slots) : slots_(slots), memory_(nullptr, Unmap{}) {
  const std::size_t size = slots * kSlotSize;
  void* memory =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of frame buffers");
  memory_ = {static_cast<std::byte*>(memory), Unmap{size}};
  madvise(memory, size, MADV_DONTFORK);
  free_.reserve(slots);
  for (std::size_t i = slots; i-- > 0;) free_.push_back(static_cast<Slot>(i));
  free_count_.set(slots);
}

verbs::MemoryRegion BufferArena::register_with(ibv_pd* pd) const {
  return verbs::MemoryRegion(
      verbs::checked(ibv_reg_mr(pd, memory_.get(), slots_ * kSlotSize, IBV_ACCESS_LOCAL_WRITE),
                     "ibv_reg_mr (frame buffers)"));
}

}  // namespace fabric::daemon
