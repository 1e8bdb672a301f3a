// Plays measurements on the data path: asks (this host's own) and answers (those of others). It knows frames
// and time only through an Outlet, so tests give it both.
//
// A measurement's object is made by the control thread, handed to the player, and is the control thread's
// again once `done` is set; in between nobody else touches it, except for `cancelled`.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "fabricd/forwarder/buffer_arena.hpp"
#include "fabricd/forwarder/counters.hpp"
#include "fabricd/forwarder/echo.hpp"
#include "fabricd/forwarder/measurement.hpp"
#include "routing/frame.hpp"
#include "words/words.hpp"

namespace fabric::daemon {

/// Lanes of measurements: one for each way, beyond those of traffic.
inline constexpr unsigned kMeasurementLane = 14;

struct Measurement {
  std::uint32_t session = 0;
  MeasurementRequest request;
  MeasurementResult result;
  std::vector<std::uint64_t> round_trips;  ///< ns; reserved beforehand
  std::atomic<bool> cancelled{false}, done{false};

  // How far it is.
  bool begun = false, waiting = false, reached = false;
  std::uint64_t sequence = 0, lost_in_a_row = 0;
  std::uint64_t reported = 0;  ///< bandwidth: frames whose fate the destination has reported
  TimePoint began, next_send, asked, deadline, give_up;
};

/// What the player needs of the data thread.
class Outlet {
 public:
  struct Frame {
    routing::FrameClass kind = routing::FrameClass::echo;
    HostIndex destination;
    unsigned way = 0;
    std::uint8_t hop_limit = 0, flags = 0;
    std::uint32_t payload = 0;  ///< bytes behind the frame header
  };
  [[nodiscard]] virtual TimePoint now() const = 0;
  [[nodiscard]] virtual HostIndex self() const = 0;
  /// The way that traffic to this host takes now; nothing where it cannot be reached.
  [[nodiscard]] virtual std::optional<unsigned> way_to(HostIndex) const = 0;
  /// A buffer for a frame of this host, or kNoSlot where there are none to spare now.
  virtual Slot take_local() = 0;
  virtual void give(Slot) = 0;
  [[nodiscard]] virtual std::span<std::byte> payload(Slot) = 0;
  /// The payload behind `used` bytes is zero up to `size`, so that nobody's packets leak into a measurement.
  virtual void clear_payload(Slot, std::uint32_t used, std::uint32_t size) = 0;
  /// Sends the slot's payload; the slot is not the caller's any more. False where it was dropped.
  virtual bool send(Slot, const Frame&) = 0;
  /// The egress queue ahead is as full as local senders may make it.
  [[nodiscard]] virtual bool crowded(HostIndex, unsigned way) const = 0;
  virtual void report(std::uint32_t session, const EchoReply&) = 0;
  virtual void finished(Measurement&) = 0;

 protected:
  ~Outlet() = default;
};

class MeasurementPlayer {
 public:
  static constexpr std::size_t kAtOnce = 16;   ///< measurements of this host
  static constexpr std::size_t kStreams = 32;  ///< of other hosts that are counted here

  MeasurementPlayer(Outlet& outlet, HostCounters& counters) : outlet_(outlet), counters_(counters) {}

  /// Takes on a measurement. There are never more than kAtOnce.
  void begin(Measurement&);
  /// Does what is due. True if it did something.
  bool run();
  /// When something is due next.
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

  /// An echo for this host, in `slot`, which is the player's from here on.
  void take_echo(Slot, std::uint32_t payload, const routing::FrameHeader&, PortIndex ingress);
  /// An echo for another host, whose hop limit ends here.
  void answer_hop_limit(Slot, std::uint32_t payload, const routing::FrameHeader&, PortIndex ingress);
  /// A stream frame for this host.
  void count_stream(std::span<const std::byte> payload, const routing::FrameHeader&);

 private:
  struct Stream {
    HostIndex source;
    std::uint32_t session = 0;
    Echo::Report report;
    TimePoint first, last, window;
    std::uint64_t window_bytes = 0;
  };

  bool step(Measurement&, TimePoint now);
  bool step_echo(Measurement&, TimePoint now);
  bool step_bandwidth(Measurement&, TimePoint now);
  bool send_echo(Measurement&, TimePoint now);
  bool send_stream(Measurement&);
  bool request_report(Measurement& m, TimePoint now);
  void answer(Slot, std::uint32_t payload, const routing::FrameHeader&, PortIndex ingress, Echo);
  void take_answer(const Echo&, const routing::FrameHeader&);
  void finish(Measurement&, const char* error);
  Stream* find_stream(HostIndex source, std::uint32_t session);

  Outlet& outlet_;
  HostCounters& counters_;
  std::array<Measurement*, kAtOnce> active_{};
  std::array<Stream, kStreams> streams_{};
};

}  // namespace fabric::daemon
