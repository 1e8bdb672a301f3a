// What happens to a message between two queue pairs: the path through the cable, and the responder. Run by
// the poster of a work request, or by its engine thread, in the poster's process.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "verbs/softhca/dma.hpp"
#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {

class Session;

/// Where a UD message goes: an address handle, resolved.
struct Route {
  std::uint16_t dlid = 0;
  std::uint8_t sl = 0, path_bits = 0;
  bool global = false;
  std::uint8_t sgid_index = 0, hop_limit = 0, traffic_class = 0;
  std::uint32_t flow_label = 0;
  std::array<std::uint8_t, 16> dgid{};
};

/// A work request as the wire sees it.
struct Message {
  std::uint8_t opcode = 0;  ///< enum ibv_wr_opcode
  bool solicited = false;
  std::uint32_t psn = 0;
  std::uint32_t packets = 0;
  std::uint32_t imm_data = 0;  ///< or the R_Key to invalidate
  std::uint32_t rkey = 0;
  std::uint64_t remote_address = 0;
  std::uint64_t compare_add = 0, swap = 0;
  std::uint64_t length = 0;
  std::array<LocalPiece, kMaxSge> local;
  std::uint32_t pieces = 0;
  // UD
  const Route* route = nullptr;
  std::uint32_t remote_qpn = 0, remote_qkey = 0;
};

/// What the requester hears.
enum class Response {
  acknowledged,
  silence,  ///< lost, or nobody there
  receiver_not_ready,
  invalid_request,
  remote_access_error,
  remote_operation_error,
};

struct Reception {
  Response response = Response::silence;
  std::uint32_t rnr_timer = 0;  ///< with receiver_not_ready: the responder's min_rnr_timer, 0..31
};

class Wire {
 public:
  struct Sent {
    std::uint64_t octets, packets;
  };
  Wire(Lab lab, Session& session, std::uint32_t seat);

  /// Connected transports. `from` is a queue pair of this process, in RTS.
  Reception send(SharedQp& from, std::uint32_t from_qpn, const Message& message);
  /// UD: nobody answers.
  void send_datagram(SharedQp& from, std::uint32_t from_qpn, const Message& message);

  /// The cable swallows it: sent by its port, and received by nobody.
  void lose(const SharedQp& from, std::uint32_t dlid, const Message& message) const;

  /// The port itself has the LID: a message to it never leaves the adapter.
  [[nodiscard]] bool loops_back(const SharedQp& from, std::uint32_t dlid) const;

  /// Changes whenever what was in flight on the queue pair's cable was lost.
  [[nodiscard]] std::uint64_t epoch(const SharedQp& from) const;

  /// Memory of `seat` that a request may use; nullptr if the key, the protection domain, the access or the
  /// bounds are wrong. `access`: flags of enum ibv_access_flags that must be there.
  [[nodiscard]] const SharedMr* find_memory(std::uint32_t seat, std::uint32_t key, std::uint32_t pd,
                                            std::uint32_t access, std::uint64_t address,
                                            std::uint64_t length) const;
  [[nodiscard]] Dma& dma() { return dma_; }

  /// Writes to the completion channel of a queue that was armed.
  void wake(std::uint32_t seat, std::uint32_t cq);
  /// Asynchronous event for a queue pair, completion queue or SRQ of whatever process.
  void raise(std::uint32_t seat, std::uint32_t hca, std::uint32_t type, std::uint64_t object);

 private:
  /// A port that a message reaches.
  struct Target {
    std::uint32_t port = kNoSharedPort;
    bool answers = false;  ///< the way back works too
  };
  /// What is to be told once all locks are released.
  struct Tidings {
    bool wake = false;      ///< the receive completion queue's channel
    bool cq_error = false;  ///< it has overrun
    bool established = false;
    bool access_error = false, request_error = false, fatal = false;
    std::uint16_t bad_key = 0;  ///< the trap of a P_Key or Q_Key that did not match
    bool srq_limit = false, last_wqe = false;
    bool failed = false;  ///< the queue pair went to ERR
  };
  /// One delivery: the responder's queue pair (locked) and what arrives.
  struct Delivery {
    std::uint32_t seat;
    SharedQp& to;
    std::uint32_t to_qpn;
    const SharedQp& from;
    std::uint32_t from_qpn;
    const Message& message;
    Tidings tidings{};
  };
  [[nodiscard]] Target route(const SharedQp& from, std::uint32_t dlid) const;
  [[nodiscard]] bool pkey_matches(const SharedQp& from, const SharedQp& to) const;
  [[nodiscard]] SharedQp* find_qp(std::uint32_t qpn) const;
  Reception respond(Delivery& delivery);
  const SharedMr* find_remote(const Delivery& delivery, std::uint32_t access, std::uint64_t length) const;
  [[nodiscard]] SharedMr* find_window(const Delivery& delivery) const;
  Response rdma(Delivery& delivery, bool again);
  Response atomic(Delivery& delivery);
  bool can_receive(Delivery& delivery);
  Response receive(Delivery& delivery, bool with_payload);
  Response refuse(Delivery& delivery, Response response);
  void fail(Delivery& delivery);
  void tell(const Delivery& delivery);
  void report_key(const Delivery& delivery);
  void datagram_to(std::uint32_t port, std::uint32_t qpn, const SharedQp& from, std::uint32_t from_qpn,
                   const Message& message);
  void count(SharedQp& from, std::uint32_t to_port, const Message& message) const;
  void count_answer(SharedQp& from, const Target& target, const Message& message) const;
  void count_lost(std::uint32_t from_port, Sent sent, bool multicast) const;

  Lab lab_;
  Session& session_;
  std::uint32_t seat_;
  Dma dma_;
  std::mutex channels_mutex_;
  std::map<std::pair<ClientId, std::uint32_t>, int> channels_;  ///< imported completion channels
};

}  // namespace fabric::softhca
