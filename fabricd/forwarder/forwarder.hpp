// The forwarder as the control thread sees it. How it works is told in data_thread.hpp and docs/forwarder.md.
//
// All public functions are for the control thread. A cable's life here:
//
//   resources()            before its queue pairs exist: what to make them with
//   prepare()              queue pairs in INIT: posts the receive buffers
//   attach()               in RTS: frames flow
//   detach()               when it returns the data thread has let go of the queue pair
//   release()              when the adapter goes: nothing of it is left here
//
// in any order of repetition: prepare, detach, prepare, attach, detach ...
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fabricd/forwarder/counters.hpp"
#include "fabricd/forwarder/measurement.hpp"
#include "routing/forwarding_state.hpp"
#include "verbs/cable.hpp"
#include "words/words.hpp"

namespace fabric::daemon {

struct ForwarderConfiguration {
  std::string device = "fab0";  ///< name of the TUN device
  unsigned mtu = 65520;         ///< bytes, 1280..65520
  unsigned ports = 2;           ///< that the buffers are dimensioned for
  /// Buffers posted to receive on each port, and those for sending, per port; 68 KiB each, of which only what
  /// is touched takes memory.
  unsigned receive_buffers = 256;
  unsigned send_buffers = 512;
  /// How long the data thread keeps looking for work after the last it found, before it sleeps.
  std::chrono::nanoseconds spin = std::chrono::microseconds(10);
  /// Longest wait for a missing frame after a change of way, before the later ones are given out.
  std::chrono::nanoseconds reorder = std::chrono::milliseconds(30);
  /// Networks in which each host has the address of its index (routing/prefix_table.hpp).
  std::vector<routing::Prefix> pools;
  std::uint32_t incarnation = 0;  ///< differs after each start: a restart begins new sequence numbers
};

struct ForwarderCounters {
  struct Figure {
    std::string_view name, help;
    std::uint64_t value;
  };
  std::vector<Figure> host;
  std::map<PortIndex, std::vector<Figure>> ports;
  std::uint64_t buffers = 0, buffers_free = 0;
};

class Forwarder {
 public:
  struct Callbacks {
    /// A work request failed on the port's data queue pair: the cable is dead, or its neighbour. The data
    /// path has already turned to the other way; give up the connection (Cable::reset(detector
    /// "completion")), which leads to detach(). Called from dispatch(), once per attach().
    std::function<void(PortIndex port, ibv_wc_status status)> suspect;
  };

  /// Opens the TUN device, maps the buffers, starts the data thread. Throws std::system_error (no permission,
  /// name in use, out of memory) and std::invalid_argument.
  Forwarder(const ForwarderConfiguration&, Callbacks);
  /// Stops the data thread. Queue pairs made with resources() must be destroyed before; contexts outlive it.
  ~Forwarder();
  Forwarder(const Forwarder&) = delete;
  Forwarder& operator=(const Forwarder&) = delete;

  /// @name The TUN device. It is there and down; addresses, routes and link state are the caller's.
  /// @{
  [[nodiscard]] const std::string& device_name() const;
  [[nodiscard]] unsigned device_index() const;
  /// Segmentation and checksum offloads that the kernel granted, for people: "csum tso4 tso6 uso4 uso6".
  [[nodiscard]] std::string device_offloads() const;
  /// @}

  /// @name Cables
  /// @{
  /// Protection domain, data completion queue and capacities for the port's data queue pair; the control ones
  /// are left alone (verbs::ControlChannel::fill). The first call for a context registers the buffers with
  /// it. Throws verbs::VerbsError; ENOBUFS where ports that have come later would leave too few buffers to
  /// send.
  verbs::CableResources resources(PortIndex port, ibv_context* context);
  void prepare(PortIndex port, ibv_qp* data);
  void attach(PortIndex port, ibv_qp* data, std::uint64_t rate);
  /// Moves the queue pair to the error state, sends what has no completion the other way, waits until the
  /// data thread has let go (microseconds; at most `kDrainLimit`). Does nothing where the port has none.
  void detach(PortIndex port);
  static constexpr std::chrono::milliseconds kDrainLimit{50};
  /// Gives back what resources() has made on the port's adapter, and the buffers registered with it when it
  /// is the adapter's last port. The port's queue pairs have been destroyed. resources() makes it anew.
  void release(PortIndex port);
  /// @}

  /// The data path uses this state from its next round on.
  void publish(std::shared_ptr<const routing::ForwardingState> state);

  /// @name Events from the data thread
  /// @{
  /// Readable when dispatch() has something to do.
  [[nodiscard]] int event_descriptor() const;
  /// Runs the callbacks that are due.
  void dispatch();
  /// @}

  [[nodiscard]] ForwarderCounters counters() const;

  /// @name Measurements
  /// @{
  using ReplyCallback = std::function<void(const EchoReply&)>;                ///< ping and trace
  using DoneCallback = std::function<void(const MeasurementResult& result)>;  ///< exactly once
  /// Begins a measurement; both callbacks come from dispatch(), never from here. Returns its number, or 0
  /// where too many (`kMaximumMeasurements`) are under way.
  std::uint32_t measure(const MeasurementRequest&, ReplyCallback, DoneCallback);
  /// Ends a measurement early: its DoneCallback comes with what there is so far.
  void cancel(std::uint32_t measurement);
  static constexpr std::size_t kMaximumMeasurements = 16;
  /// @}

 private:
  struct Private;
  std::unique_ptr<Private> p_;
};

}  // namespace fabric::daemon
