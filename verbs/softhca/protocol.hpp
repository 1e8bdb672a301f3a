// What a client (the preloaded library) and the hardware process say to each other.
//
// Every process has one SOCK_SEQPACKET connection for calls: a Request goes out, a Reply comes back, one at a
// time. Whatever has to wake a program up by itself (MADs of an open umad port, asynchronous events of an
// open device) or has to end when the program ends (an issm file held open) is a descriptor of its own: the
// hardware makes a socket pair, keeps one end and hands out the other with the Reply. So the library needs no
// thread, the program may poll the descriptor as it would poll the character device, and the kernel tells the
// hardware when the last holder of it is gone.
//
// On a umad descriptor both directions carry `struct ib_user_mad` as the kernel's umad device does.
// On an event descriptor the hardware sends AsyncEvent.
#pragma once

#include <cstdint>

#include "verbs/softhca/lab_memory.hpp"
#include "verbs/softhca/packet.hpp"

namespace fabric::softhca {

/// An asynchronous event of a device.
struct AsyncEvent {
  std::uint32_t type = 0;  ///< enum ibv_event_type
  std::uint32_t port = 0;  ///< port number for port events, from 1
  std::uint64_t object =
      0;  ///< for events of a queue pair, completion queue or SRQ: whatever the owner chose
};

/// What an agent wants to receive: umad_register2() with the kernel's names.
struct AgentRequest {
  std::uint32_t qpn = 1;         ///< 0 or 1
  std::uint32_t mgmt_class = 0;  ///< 0: sends only, and receives responses
  std::uint32_t class_version = 0;
  std::uint32_t rmpp_version = 0;  ///< 1: segmentation and reassembly are done for the agent
  std::uint32_t user_rmpp = 0;     ///< not zero: the agent does RMPP itself
  std::uint32_t oui = 0;           ///< for vendor classes 0x30..0x4F
  std::uint64_t method_mask[2] = {0, 0};
};

enum class Call : std::uint32_t {
  hello,             ///< text: host name. Reply: HelloReply, with the memfd
  open_events,       ///< hca. Reply: with the descriptor
  raise_event,       ///< client, hca, event: to the event descriptors of another client
  report_key,        ///< port: index in LabMemory::ports, value: trap 257 or 258, violation
  publish,           ///< key, with a descriptor
  withdraw,          ///< key
  import,            ///< client, key. Reply: with the descriptor
  open_umad,         ///< hca, port. Reply: value is a name for the port, with the descriptor
  register_agent,    ///< key: name of the umad port, agent. Reply: value is the agent id
  unregister_agent,  ///< key: name of the umad port, value: agent id
  hold_issm,         ///< hca, port. Reply: with the descriptor; IsSM shows until it is closed
  describe_node,     ///< hca, text: NodeDescription
  update_counters,   ///< traffic counters in the port table are about to be read
};

struct Request {
  Call call{};
  std::uint32_t version = kLabVersion;
  std::uint32_t hca = 0;   ///< number of the HCA in the host, from 0
  std::uint32_t port = 0;  ///< from 1
  ClientId client = 0;
  std::uint32_t value = 0;
  std::uint64_t key = 0;
  AsyncEvent event;
  AgentRequest agent;
  KeyViolation violation;
  char text[64] = {};
};

struct Reply {
  std::int32_t error = 0;  ///< errno, 0 is success
  std::uint32_t value = 0;
};

inline constexpr unsigned kMaxHcas = 8;         ///< of one host
inline constexpr unsigned kMaxPortsOfHca = 16;  ///< the node GUID leaves four bits for the port

struct HelloReply {
  Reply reply;
  ClientId client = 0;
  std::uint32_t host = 0;  ///< number of the host, from 1
  std::uint32_t hcas = 0;
  struct Hca {
    std::uint64_t node_guid = 0, system_image_guid = 0;
    std::uint32_t vendor_id = 0, part_id = 0, hardware_version = 0, ports = 0;
    std::uint32_t port_index[kMaxPortsOfHca] = {};  ///< into LabMemory::ports
    char name[20] = {}, firmware[20] = {}, board_id[32] = {};
  } hca[kMaxHcas];
};

}  // namespace fabric::softhca
