// A process's connection to the hardware process of its lab. One per process, made when it is first needed.
//
// $SOFTHCA_SOCKET names the lab, $SOFTHCA_HOST the host that this process is on. There is no thread behind
// it: calls are short request-and-reply exchanges under a lock, and everything that arrives by itself arrives
// on descriptors of its own (protocol.hpp). A child made by fork() gets a session of its own when it needs
// one; it keeps the parent's umad descriptors, as it would keep real ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "verbs/softhca/lab_memory.hpp"
#include "verbs/softhca/protocol.hpp"

namespace fabric::softhca {

struct HcaDescription {
  std::string name;      ///< "softhca0"
  std::uint32_t number;  ///< in the host, from 0
  std::uint64_t node_guid, system_image_guid;
  std::uint32_t vendor_id, part_id, hardware_version;
  std::string firmware, board_id;
  std::vector<std::uint32_t> ports;  ///< indexes into LabMemory::ports; [0] is port 1
};

class Session {
 public:
  /// The session of this process. Throws std::system_error: ENODEV without $SOFTHCA_SOCKET, what connect(2)
  /// says where no hardware answers there, ENXIO where the lab has no such host, EHOSTDOWN where that host
  /// is powered off, EPROTO where the hardware process is of another build.
  static Session& get();

  [[nodiscard]] ClientId client() const { return client_; }
  [[nodiscard]] const std::string& host() const { return host_; }
  [[nodiscard]] std::uint32_t host_number() const { return host_number_; }  ///< from 1
  /// All that have a place in this host, whether they are there or not.
  [[nodiscard]] const std::vector<HcaDescription>& hcas() const { return hcas_; }
  /// Number of the adapter's present insertion (SharedPort), 0 while it is not there.
  [[nodiscard]] std::uint32_t insertion(const HcaDescription& hca) const {
    return memory_->ports[hca.ports.front()].insertion.load(std::memory_order_acquire);
  }
  /// nullptr where this host has no HCA of that name, or not now.
  [[nodiscard]] const HcaDescription* find_hca(const std::string& name) const;
  [[nodiscard]] LabMemory& memory() const { return *memory_; }
  [[nodiscard]] std::span<std::byte> verbs_area() const;

  /// A descriptor (close-on-exec, blocking) that becomes readable when the device has an asynchronous event:
  /// events of its ports, and what raise_event() sends to this client. The caller closes it.
  int open_events(std::uint32_t hca);
  /// Takes one event from such a descriptor. 0, or errno: EAGAIN where it is non-blocking and there is none,
  /// EIO where the hardware is gone.
  static int read_event(int events, AsyncEvent& event);
  /// Sends an event to every event descriptor that `client` has open for its HCA number `hca`.
  void raise_event(ClientId client, std::uint32_t hca, const AsyncEvent& event);

  /// Tells the hardware that a packet was dropped at a port because of its P_Key or Q_Key. `port` is an index
  /// into LabMemory::ports, `trap` 257 or 258.
  void report_key(std::uint32_t port, std::uint16_t trap, const KeyViolation& violation);

  /// Lends a copy of `descriptor` to the other clients under (this client, key), until withdraw() or the end
  /// of this process. Publishing the same key again replaces it. The hardware keeps a duplicate.
  void publish(std::uint64_t key, int descriptor);
  void withdraw(std::uint64_t key);
  /// A duplicate (close-on-exec) of what `owner` has published; -1 where there is none (any more).
  int import(ClientId owner, std::uint64_t key);

  /// One request and its reply. `send` is a descriptor to pass along, or -1; `received`, where given, gets
  /// the descriptor that came back, or -1. Throws std::system_error(EIO) where the hardware is gone; an error
  /// that the hardware reports is in the Reply.
  Reply call(Request request, int send = -1, int* received = nullptr);

 private:
  Session();
  ~Session() = delete;
  static void renew_after_fork();

  std::mutex mutex_;
  int socket_ = -1;
  ClientId client_ = 0;
  std::uint32_t host_number_ = 0;
  std::string host_;
  std::vector<HcaDescription> hcas_;
  LabMemory* memory_ = nullptr;
};

}  // namespace fabric::softhca
