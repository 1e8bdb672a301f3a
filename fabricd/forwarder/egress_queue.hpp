// What is to leave by one port, in order: a ring whose first part the adapter has and whose rest waits for
// room. An entry stays until its completion says that the neighbour has it; so when the cable dies,
// everything that is not known to have arrived is still here, in order.
//
// Capacity is that of all buffers there are, so that push() always succeeds; how much new traffic may wait is
// the caller's policy.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fabricd/forwarder/buffer_arena.hpp"

namespace fabric::daemon {

struct Outgoing {
  Slot slot = kNoSlot;
  std::uint32_t length = 0;  ///< bytes, with the frame header
};

class EgressQueue {
 public:
  explicit EgressQueue(std::size_t slots) : ring_(std::bit_ceil(slots)) {}

  void push(Outgoing outgoing) noexcept {
    at(tail_++) = outgoing;
    bytes_ += outgoing.length;
  }
  [[nodiscard]] std::uint32_t size() const noexcept { return tail_ - head_; }
  [[nodiscard]] std::uint32_t posted() const noexcept { return next_ - head_; }
  [[nodiscard]] std::uint32_t waiting() const noexcept { return tail_ - next_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

  /// The i-th one that waits, and the number that its completion carries.
  [[nodiscard]] const Outgoing& peek(std::uint32_t i) const noexcept { return at(next_ + i); }
  [[nodiscard]] std::uint32_t number(std::uint32_t i) const noexcept { return next_ + i; }
  /// The adapter has taken the first n that waited.
  void mark_posted(std::uint32_t n) noexcept { next_ += n; }

  /// The adapter reports `number` done, and so all before it: done(Outgoing) for each. Numbers that are not
  /// with the adapter (of an earlier queue pair) do nothing.
  template <class Done>
  void complete(std::uint32_t number, Done&& done) noexcept {
    if (number - head_ >= posted()) return;
    while (head_ != number + 1) release(done);
  }

  /// Empties the queue: lost(Outgoing, was_posted) for each, in order.
  template <class Lost>
  void drain(Lost&& lost) noexcept {
    while (size() > 0) {
      const bool was_posted = posted() > 0;
      if (!was_posted) ++next_;
      release([&](Outgoing outgoing) { lost(outgoing, was_posted); });
    }
  }

 private:
  template <class Done>
  void release(Done&& done) noexcept {
    const Outgoing outgoing = at(head_++);
    bytes_ -= outgoing.length;
    done(outgoing);
  }
  Outgoing& at(std::uint32_t i) noexcept { return ring_[i & (ring_.size() - 1)]; }
  [[nodiscard]] const Outgoing& at(std::uint32_t i) const noexcept { return ring_[i & (ring_.size() - 1)]; }

  std::vector<Outgoing> ring_;
  std::uint32_t head_ = 0, next_ = 0, tail_ = 0;  ///< oldest, first that waits, end
  std::uint64_t bytes_ = 0;
};

}  // namespace fabric::daemon
