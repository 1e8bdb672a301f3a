// What the data path counts. One list gives the members, the names in JSON and the help texts.
//
// Every counter has one writer, the data thread; whoever reads sees values that may be a moment old, each
// whole in itself.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fabric::daemon {

// clang-format off
/// Of the host: X(name, help)
#define FABRIC_FORWARDER_COUNTERS(X)                                                                     \
  X(tun_read_packets, "packets taken from the TUN device")                                               \
  X(tun_read_bytes, "bytes of them, without the virtio header")                                          \
  X(tun_written_packets, "packets given to the TUN device")                                              \
  X(tun_written_bytes, "bytes of them, without the virtio header")                                       \
  X(frames_relayed, "frames passed on for other hosts")                                                  \
  X(frames_turned, "frames sent the other way because the cable ahead was dead")                         \
  X(frames_resent, "frames without a completion when their cable died, sent the other way")              \
  X(echo_answered, "echo requests answered")                                                             \
  X(stream_frames, "frames of bandwidth measurements received")                                          \
  X(stream_bytes, "payload bytes of them")                                                               \
  X(unreachable_sent, "ICMP and ICMPv6 unreachable messages given to local senders")                     \
  X(local_pauses, "times that reading the TUN device waited for an egress queue")                        \
  X(tun_failures, "failures to read the TUN device; it is not looked at any more")                       \
  X(port_errors, "cables that showed themselves dead by a failed completion")                            \
  X(undrained, "detached cables whose work requests were not flushed in time")                           \
  X(drop_no_route, "dropped: no host or no way for this destination")                                    \
  X(drop_unreachable, "dropped: the destination host is not reachable now")                              \
  X(drop_multicast, "dropped: multicast or broadcast")                                                   \
  X(drop_to_self, "dropped: routed to the fabric, but the prefix is this host's own")                    \
  X(drop_not_ip, "dropped: neither IPv4 nor IPv6, or too short")                                         \
  X(drop_turned_twice, "dropped: met a second dead cable after it was turned")                           \
  X(drop_hop_limit, "dropped: hop limit reached")                                                        \
  X(drop_malformed, "dropped: not a frame of this version")                                              \
  X(drop_egress_full, "dropped: egress queue full")                                                      \
  X(drop_no_buffer, "dropped on receipt: no free buffer to refill the receive queue with")               \
  X(drop_duplicate, "dropped: seen before")                                                              \
  X(drop_late, "dropped: came after its place in the order was given up")                                \
  X(drop_unknown_source, "dropped: from a host that is not on the map here")                             \
  X(drop_tun_write, "dropped: the TUN device did not take it")                                           \
  X(drop_no_session, "dropped: measurement frame that nobody waits for")                                 \
  X(drop_detached, "dropped: no cable left to send it on")                                               \
  X(loop_busy, "rounds of the data loop that found work")                                                \
  X(loop_sleeps, "times that the data thread went to sleep")

/// Of each port: X(name, help)
#define FABRIC_FORWARDER_PORT_COUNTERS(X)                                                                \
  X(sent_frames, "frames sent, by completion")                                                           \
  X(sent_bytes, "bytes of them, with the frame header")                                                  \
  X(received_frames, "frames received")                                                                  \
  X(received_bytes, "bytes of them, with the frame header")                                              \
  X(queued, "frames in the egress queue now, hardware's part included")                                  \
  X(queued_most, "the most there have been")
// clang-format on

/// One figure, written by one thread and read by any.
class Counter {
 public:
  void add(std::uint64_t n = 1) noexcept { set(get() + n); }
  void set(std::uint64_t n) noexcept { value_.store(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

#define FABRIC_ENUMERATOR(name, help) name,
#define FABRIC_TEXT(name, help) CounterText{#name, help},
struct CounterText {
  std::string_view name, help;
};

enum class HostCounter : std::uint8_t { FABRIC_FORWARDER_COUNTERS(FABRIC_ENUMERATOR) count };
enum class PortCounter : std::uint8_t { FABRIC_FORWARDER_PORT_COUNTERS(FABRIC_ENUMERATOR) count };
inline constexpr std::array kHostCounterTexts{FABRIC_FORWARDER_COUNTERS(FABRIC_TEXT)};
inline constexpr std::array kPortCounterTexts{FABRIC_FORWARDER_PORT_COUNTERS(FABRIC_TEXT)};
#undef FABRIC_ENUMERATOR
#undef FABRIC_TEXT

template <class Enum>
class Counters {
 public:
  static constexpr std::size_t kSize = static_cast<std::size_t>(Enum::count);
  Counter& operator[](Enum name) { return counters_[static_cast<std::size_t>(name)]; }
  const Counter& operator[](Enum name) const { return counters_[static_cast<std::size_t>(name)]; }
  [[nodiscard]] std::array<std::uint64_t, kSize> snapshot() const {
    std::array<std::uint64_t, kSize> values;
    for (std::size_t i = 0; i < kSize; ++i) values[i] = counters_[i].get();
    return values;
  }

 private:
  std::array<Counter, kSize> counters_;
};
using HostCounters = Counters<HostCounter>;
using PortCounters = Counters<PortCounter>;

}  // namespace fabric::daemon
