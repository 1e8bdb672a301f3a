// What the destination does with arriving frames: suppresses duplicates, and restores order around a change
// of way.
//
// A frame whose completion never came when a cable died is sent again the other way, so it may arrive twice;
// and what was sent the long way round arrives after what was sent later over the short one. Each (source,
// lane) has a window of kWindow sequence numbers behind the highest one seen: a number that is marked there
// is a duplicate; one that is older still is stale.
//
// Order. A frame ahead of a gap is passed on at once, as a rule: the gap is an ordinary drop, and nobody
// waits for it. It is held only where what is missing may be on another way: the last frame in order came by
// another way (or turned, or not turned) than this one, or such a change began less than `hold` ago. All that
// is held is passed on, in order, when the gap closes, when `hold` is over since the change began, or when
// there is no room; so one change of way delays a flow by `hold` at most, however much was lost. Every way by
// itself is in order, because cables and relays are.
//
// A restart of the source begins a new epoch, with sequence number 0; stragglers of the one before are
// dropped for a while. What comes first need not be number 0, where the first frames meet a cable that dies:
// it is waited for like any other. Where it was a destination that restarted, its window begins with what it
// sees. The epoch is 8 bits of a number that differs after each start: where two starts share them by
// accident, the window notices that everything is stale and begins anew.
//
// Threading: one thread owns a SequenceWindows. accept() and expire() do not allocate, lock or throw;
// prepare() allocates.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "routing/forwarding_state.hpp"
#include "routing/frame.hpp"
#include "words/words.hpp"

namespace fabric::routing {

class SequenceWindows {
 public:
  /// The caller's name for a buffer.
  using Slot = std::uint32_t;

  struct Settings {
    Duration hold = std::chrono::milliseconds(10);
    std::uint32_t capacity = 512;    ///< frames held at a time, over all sources
    std::uint32_t per_window = 256;  ///< of these, per source and lane
  };

  struct Counters {
    std::uint64_t delivered = 0;   ///< passed on, of these:
    std::uint64_t held = 0;        ///<   had to wait
    std::uint64_t late = 0;        ///<   passed on after a later one: nobody had waited
    std::uint64_t duplicates = 0;  ///< dropped
    std::uint64_t stale = 0;       ///< dropped: behind the window, or of the epoch before
    std::uint64_t unknown = 0;     ///< dropped: from a source that prepare() was not told of
    std::uint64_t gaps = 0;        ///< sequence numbers that were not waited for, or in vain
    std::uint64_t expired = 0;     ///< times that `hold` was over before the gap closed
    std::uint64_t overflows = 0;   ///< times that there was no room to wait any longer
    std::uint64_t restarts = 0;    ///< times that a source began anew
  };

  enum class Verdict : std::uint8_t {
    delivered,  ///< given to `deliver`, perhaps together with held ones
    held,       ///< the window keeps the slot, until it gives it to `deliver`
    duplicate,  ///< the caller frees the slot, as with all that follow
    stale,
    unknown,
  };

  static constexpr std::uint32_t kWindow = 4096;
  static constexpr unsigned kLanes = 16;

  explicit SequenceWindows(Settings settings) : settings_(settings), pool_(settings.capacity) {
    for (std::uint32_t i = 0; i < pool_.size(); ++i) pool_[i].next = i + 1 < pool_.size() ? i + 1 : kNone;
    free_ = pool_.empty() ? kNone : 0;
    holding_.reserve(pool_.size());
  }

  /// Makes room for the hosts of `state`. Allocates for hosts that are new; forgets nothing.
  void prepare(const ForwardingState& state) {
    if (sources_.size() < state.hosts.size()) sources_.resize(state.hosts.size());
    for (std::size_t i = 0; i < state.hosts.size(); ++i)
      if (state.hosts[i].guid != Guid{} && !sources_[i]) sources_[i] = std::make_unique<Source>();
  }

  /// A frame for this host has arrived in `slot`. Calls deliver(Slot) for each frame that is due, in order:
  /// it may be this one, held ones, or both.
  template <class Deliver>
  Verdict accept(TimePoint now, const FrameHeader& header, Slot slot, Deliver&& deliver) {
    const std::size_t source = host_of(header.source).value();
    if (source >= sources_.size() || !sources_[source]) {
      ++counters_.unknown;
      return Verdict::unknown;
    }
    Window& window = (*sources_[source])[header.lane % kLanes];
    const std::uint32_t sequence = header.sequence;
    const auto path = static_cast<std::uint8_t>(way_of(header.destination) << 1 |
                                                ((header.flags & FrameHeader::kTurned) != 0 ? 1 : 0));
    if (!window.open || header.epoch != window.epoch) {
      if (window.open && header.epoch == window.previous_epoch && now < window.previous_until) {
        ++counters_.stale;
        return Verdict::stale;
      }
      begin(window, now, header.epoch, sequence, path, deliver);
    }

    const auto ahead = static_cast<std::int32_t>(sequence - window.highest);
    if (ahead <= -static_cast<std::int32_t>(kWindow)) {
      if (++window.stale_run < kStaleRun) {
        ++counters_.stale;
        return Verdict::stale;
      }
      begin(window, now, header.epoch, sequence, path, deliver);
    } else if (ahead <= 0 && marked(window, sequence)) {
      ++counters_.duplicates;
      return Verdict::duplicate;
    } else if (ahead > 0) {
      advance(window, sequence);
    }
    mark(window, sequence);
    window.stale_run = 0;

    const auto gap = static_cast<std::int32_t>(sequence - window.next);
    if (gap < 0) {
      ++counters_.late;
      if (counters_.gaps > 0) --counters_.gaps;  // it was given up when it was passed over
      if (path != window.path && window.head == kNone) window.turn_until = now + settings_.hold;
      pass(slot, deliver);
      return Verdict::delivered;
    }
    if (gap == 0) {
      pass(slot, deliver);
      window.next = sequence + 1;
      window.path = path;
      if (window.head != kNone) drain(window, deliver, false);
      return Verdict::delivered;
    }
    const bool turning = window.head != kNone || now < window.turn_until;
    if (!turning && path == window.path && (header.flags & FrameHeader::kSteered) == 0) {
      counters_.gaps += static_cast<std::uint32_t>(gap);
      pass(slot, deliver);
      window.next = sequence + 1;
      return Verdict::delivered;
    }
    if (!turning) window.turn_until = now + settings_.hold;
    if (free_ == kNone || window.held >= settings_.per_window) {
      ++counters_.overflows;
      drain_around(window, sequence, slot, path, deliver);
      return Verdict::delivered;
    }
    keep(window, sequence, slot, path);
    return Verdict::held;
  }

  /// When expire() is due; nothing: no frame is held. May be earlier than needed, never later.
  [[nodiscard]] std::optional<TimePoint> deadline() const {
    if (holding_.empty()) return std::nullopt;
    return earliest_;
  }

  /// Passes on what was held long enough.
  template <class Deliver>
  void expire(TimePoint now, Deliver&& deliver) {
    if (holding_.empty() || now < earliest_) return;
    earliest_ = TimePoint::max();
    for (std::size_t i = holding_.size(); i-- > 0;) {
      Window& window = *holding_[i];
      if (window.turn_until > now) {
        earliest_ = std::min(earliest_, window.turn_until);
      } else {
        ++counters_.expired;
        drain(window, deliver, true);  // takes it off holding_; what takes its place was seen already
      }
    }
  }

  [[nodiscard]] const Counters& counters() const { return counters_; }
  /// Frames that wait at present.
  [[nodiscard]] std::uint32_t held() const { return held_; }

 private:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  /// So many stale frames with nothing in between are a source that began anew unnoticed.
  static constexpr std::uint8_t kStaleRun = 32;
  /// For so long nothing of the epoch before is taken for another restart.
  static constexpr Duration kStragglers = std::chrono::seconds(1);

  struct Held {
    std::uint32_t sequence = 0;
    Slot slot = 0;
    std::uint32_t next = kNone;  ///< in the window's list, by sequence; or in the free list
    std::uint8_t path = 0;
  };

  struct Window {
    std::uint32_t next = 0;     ///< all before it was passed on or given up
    std::uint32_t highest = 0;  ///< of those seen
    std::uint32_t head = kNone, tail = kNone;
    std::uint32_t held = 0;
    std::uint32_t place = 0;  ///< in holding_, where head is not kNone
    TimePoint turn_until;     ///< gaps are waited for until then
    TimePoint previous_until;
    bool open = false;
    std::uint8_t epoch = 0, previous_epoch = 0;
    std::uint8_t path = 0;  ///< way and turned mark of the last one in order
    std::uint8_t stale_run = 0;
    std::array<std::uint64_t, kWindow / 64> seen{};  ///< bit per number, for (highest - kWindow, highest]
  };
  using Source = std::array<Window, kLanes>;

  static bool marked(const Window& window, std::uint32_t sequence) {
    return (window.seen[sequence % kWindow / 64] >> sequence % 64 & 1) != 0;
  }
  static void mark(Window& window, std::uint32_t sequence) {
    window.seen[sequence % kWindow / 64] |= std::uint64_t{1} << sequence % 64;
  }
  static void advance(Window& window, std::uint32_t sequence) {
    if (sequence - window.highest >= kWindow) {
      window.seen.fill(0);
    } else {
      for (std::uint32_t s = window.highest + 1; s != sequence; ++s)
        window.seen[s % kWindow / 64] &= ~(std::uint64_t{1} << s % 64);
      window.seen[sequence % kWindow / 64] &= ~(std::uint64_t{1} << sequence % 64);
    }
    window.highest = sequence;
  }

  template <class Deliver>
  void begin(Window& window, TimePoint now, std::uint8_t epoch, std::uint32_t sequence, std::uint8_t path,
             Deliver&& deliver) {
    if (window.open) {
      drain(window, deliver, true);
      ++counters_.restarts;
      if (epoch != window.epoch) {
        window.previous_epoch = window.epoch;
        window.previous_until = now + kStragglers;
      }
    } else {
      window.previous_epoch = epoch;
    }
    window.open = true;
    window.epoch = epoch;
    window.highest = sequence;
    window.next = sequence < kWindow ? 0 : sequence;
    window.path = path;
    window.stale_run = 0;
    window.turn_until = window.next == sequence ? now : now + settings_.hold;
    window.seen.fill(0);
  }

  template <class Deliver>
  void pass(Slot slot, Deliver&& deliver) {
    ++counters_.delivered;
    deliver(slot);
  }

  void keep(Window& window, std::uint32_t sequence, Slot slot, std::uint8_t path) {
    const std::uint32_t index = free_;
    free_ = pool_[index].next;
    Held& held = pool_[index];
    held.sequence = sequence;
    held.slot = slot;
    held.path = path;
    if (window.head == kNone) {
      held.next = kNone;
      window.head = window.tail = index;
      window.place = static_cast<std::uint32_t>(holding_.size());
      earliest_ = holding_.empty() ? window.turn_until : std::min(earliest_, window.turn_until);
      holding_.push_back(&window);  // never beyond its capacity: one entry per held frame at most
    } else if (after(sequence, pool_[window.tail].sequence)) {
      held.next = kNone;
      pool_[window.tail].next = index;
      window.tail = index;
    } else {
      std::uint32_t* link = &window.head;
      while (after(sequence, pool_[*link].sequence)) link = &pool_[*link].next;
      held.next = *link;
      *link = index;
    }
    ++window.held;
    ++held_;
    ++counters_.held;
  }

  static bool after(std::uint32_t a, std::uint32_t b) { return static_cast<std::int32_t>(a - b) > 0; }

  /// Passes on the held frames that are next in order; with `all`, whatever is missing before them is given
  /// up.
  template <class Deliver>
  void drain(Window& window, Deliver&& deliver, bool all) {
    if (window.head == kNone) return;
    while (window.head != kNone && (all || pool_[window.head].sequence == window.next))
      pass_head(window, deliver);
    if (window.head == kNone) {
      window.tail = kNone;
      holding_.back()->place = window.place;
      holding_[window.place] = holding_.back();
      holding_.pop_back();
    }
  }

  /// drain(all) together with one more frame, at its place in the order.
  template <class Deliver>
  void drain_around(Window& window, std::uint32_t sequence, Slot slot, std::uint8_t path, Deliver&& deliver) {
    while (window.head != kNone && after(sequence, pool_[window.head].sequence)) {
      if (pool_[window.head].next == kNone) {
        drain(window, deliver, true);
        break;
      }
      pass_head(window, deliver);
    }
    counters_.gaps += sequence - window.next;
    pass(slot, deliver);
    window.next = sequence + 1;
    window.path = path;
    drain(window, deliver, true);
  }

  template <class Deliver>
  void pass_head(Window& window, Deliver&& deliver) {
    const std::uint32_t index = window.head;
    Held& held = pool_[index];
    window.head = held.next;
    counters_.gaps += held.sequence - window.next;
    window.next = held.sequence + 1;
    window.path = held.path;
    const Slot slot = held.slot;
    held.next = free_;
    free_ = index;
    --window.held;
    --held_;
    pass(slot, deliver);
  }

  Settings settings_;
  std::vector<std::unique_ptr<Source>> sources_;  ///< by host index
  std::vector<Held> pool_;
  std::uint32_t free_ = kNone;
  std::uint32_t held_ = 0;
  std::vector<Window*> holding_;  ///< windows that hold frames, in no order
  TimePoint earliest_ = TimePoint::max();
  Counters counters_;
};

}  // namespace fabric::routing
