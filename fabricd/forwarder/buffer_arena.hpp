// The registered buffers: one mapped region, cut into slots of one size, registered with every adapter, so
// that a buffer received on one adapter is sent on another as it is.
//
// Slots are handed out last in, first out: what was used a moment ago is still in the cache. Not thread-safe,
// but for the registration: the free list is the data thread's.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabricd/forwarder/counters.hpp"
#include "routing/frame.hpp"
#include "verbs/handles.hpp"

namespace fabric::daemon {

using Slot = std::uint32_t;
inline constexpr Slot kNoSlot = ~Slot{0};

/// In front of every packet that goes to or from the TUN device: struct virtio_net_hdr_v1, little endian.
inline constexpr std::size_t kVirtioHeader = 12;
/// Where a packet begins in a slot; IP headers are thus aligned to 4.
inline constexpr std::size_t kPacketOffset = routing::FrameHeader::kSize + kVirtioHeader;

class BufferArena {
 public:
  /// Frame header, virtio header and 64 KiB, in whole pages.
  static constexpr std::size_t kSlotSize = (kPacketOffset + 65536 + 4095) / 4096 * 4096;

  /// Throws std::system_error.
  explicit BufferArena(std::size_t slots);
  /// Makes the region known to a protection domain. Throws verbs::VerbsError.
  [[nodiscard]] verbs::MemoryRegion register_with(ibv_pd* pd) const;

  /// A free slot, or kNoSlot.
  [[nodiscard]] Slot take() noexcept {
    if (free_.empty()) return kNoSlot;
    const Slot slot = free_.back();
    free_.pop_back();
    free_count_.set(free_.size());
    return slot;
  }
  void give(Slot slot) noexcept {
    free_.push_back(slot);  // never allocates: the capacity is that of all slots
    free_count_.set(free_.size());
  }
  [[nodiscard]] std::byte* data(Slot slot) const noexcept { return memory_.get() + slot * kSlotSize; }
  [[nodiscard]] std::span<std::byte> bytes(Slot slot) const noexcept { return {data(slot), kSlotSize}; }
  [[nodiscard]] std::size_t size() const noexcept { return slots_; }
  [[nodiscard]] std::size_t available() const noexcept { return free_.size(); }
  /// The same for any thread.
  [[nodiscard]] std::uint64_t available_now() const noexcept { return free_count_.get(); }

 private:
  struct Unmap {
    std::size_t size = 0;
    void operator()(std::byte* memory) const noexcept;
  };
  std::size_t slots_;
  std::unique_ptr<std::byte, Unmap> memory_;
  std::vector<Slot> free_;
  Counter free_count_;
};

}  // namespace fabric::daemon
