// What a host's kernel does with MADs between the adapter and the umad descriptors. See kernel_mad.cpp.
#pragma once

#include <infiniband/umad.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <span>
#include <unordered_map>
#include <vector>

#include "verbs/softhca/model.hpp"
#include "verbs/softhca/protocol.hpp"

namespace fabric::softhca {

/// An open umad port.
using UmadId = std::uint32_t;

class KernelMad {
 public:
  class Users {
   public:
    virtual ~Users() = default;
    /// A MAD to read from an umad port, as read(2) gives it: header, and the data behind it.
    virtual void to_user(UmadId user, const ib_user_mad& header, std::span<const std::uint8_t> data) = 0;
  };

  KernelMad(Model& model, Users& users) : model_(model), users_(users) {}

  UmadId open(PortNumber port);
  void close(UmadId user);
  /// Agent id (0..31), or a negative errno: EINVAL for what makes no sense or is taken, ENOMEM where the port
  /// has 32 agents.
  int register_agent(UmadId user, const AgentRequest& request);
  /// 0 or a negative errno.
  int unregister_agent(UmadId user, std::uint32_t agent);

  /// What write(2) on the umad port carries: ib_user_mad and data. What makes no sense is dropped.
  void send(TimePoint now, UmadId user, std::span<const std::uint8_t> message);
  /// A MAD from the adapter.
  void receive(TimePoint now, PortNumber port, const Packet& packet);

  void run(TimePoint now);
  [[nodiscard]] std::optional<TimePoint> next_timer() const;

 private:
  // A request that waits for its response.
  struct Pending {
    Packet packet;
    ib_user_mad header;
    Duration timeout;
    std::uint32_t retries_left;
    std::uint64_t timer;
  };
  // A message on its way out in segments.
  struct Transfer {
    Packet packet;  // with the headers of every segment
    ib_user_mad header;
    std::vector<std::uint8_t> data;  // behind the class header
    std::uint32_t segments, acknowledged = 0, next = 1, window = 1;
    Duration timeout;
    std::uint32_t retries_left;
    std::uint64_t timer = 0;
  };
  // A message on its way in.
  struct Reassembly {
    Packet first;
    std::vector<std::uint8_t> message;
    std::uint32_t received = 0, window = 1;
    bool complete = false;  // kept for a while, to acknowledge what is sent again
    std::uint64_t timer = 0;
  };
  struct Agent {
    UmadId user;
    std::uint32_t id;        // of the umad port
    std::uint32_t high_tid;  // upper half of the transaction ids of its requests
    PortNumber port;
    AgentRequest what;
    std::unordered_map<std::uint64_t, Pending> pending;                          // by transaction id
    std::unordered_map<std::uint64_t, Transfer> transfers;                       // likewise
    std::map<std::pair<std::uint64_t, std::uint16_t>, Reassembly> reassemblies;  // and source LID
  };
  enum class TimerKind : std::uint8_t { pending, transfer, reassembly };
  struct Timer {
    TimePoint at;
    std::uint64_t serial;
    TimerKind kind;
    std::uint32_t high_tid;
    std::uint64_t transaction;
    std::uint16_t source;
    bool operator>(const Timer& other) const {
      return std::tie(at, serial) > std::tie(other.at, other.serial);
    }
  };
  struct User {
    PortNumber port;
    std::array<Agent*, UMAD_CA_MAX_AGENTS> agents{};
  };

  Agent* find_agent(PortNumber port, const Mad& mad);
  void remove(Agent& agent);
  std::uint64_t set_timer(TimePoint at, TimerKind kind, const Agent& agent, std::uint64_t transaction,
                          std::uint16_t source = 0);
  void deliver(const Agent& agent, const Packet& packet, std::span<const std::uint8_t> data);
  void complete(Agent& agent, const Packet& packet, std::span<const std::uint8_t> data);
  void give_back(const Agent& agent, const ib_user_mad& header, const Mad& mad);

  // rmpp.cpp
  void start_transfer(TimePoint now, Agent& agent, Packet packet, const ib_user_mad& header,
                      std::span<const std::uint8_t> mad);
  void send_segments(TimePoint now, Agent& agent, std::uint64_t transaction);
  void receive_rmpp(TimePoint now, Agent& agent, const Packet& packet);
  void receive_segment(TimePoint now, Agent& agent, const Packet& packet);
  void receive_acknowledgement(TimePoint now, Agent& agent, const Packet& packet);
  void acknowledge(TimePoint now, const Agent& agent, const Reassembly& reassembly);
  void transfer_timeout(TimePoint now, Agent& agent, std::uint64_t transaction);

  Model& model_;
  Users& users_;
  std::unordered_map<UmadId, User> open_;
  std::unordered_map<std::uint32_t, std::unique_ptr<Agent>> agents_;  // by high_tid
  std::vector<std::vector<Agent*>> listeners_;                        // by port: those with a class
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_;
  std::uint64_t next_serial_ = 1;
  UmadId next_user_ = 1;
  std::uint32_t next_high_tid_ = 1;
};

// For kernel_mad.cpp and rmpp.cpp.

/// Classes that may use RMPP.
bool is_rmpp_class(std::uint8_t mgmt_class);
/// Bytes of all headers of such a class, up to the data.
std::size_t class_header_size(std::uint8_t mgmt_class);

}  // namespace fabric::softhca
