// libibumad's functions on the software HCA: the half of libsofthca.so that management programs use.
//
// A port descriptor is a socket to the hardware process that carries `struct ib_user_mad`, so poll, epoll and
// fork treat it as they would the character device. What the kernel does with MADs is done over there
// (kernel_mad.cpp). Functions that only print or name things are left to libibumad itself.
//
// Each function returns what libibumad 3 returns, errors included (mostly negative errno values).
#include <infiniband/umad.h>
#include <infiniband/umad_types.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>
#include <vector>

#include "verbs/softhca/descriptor_passing.hpp"
#include "verbs/softhca/issm.hpp"
#include "verbs/softhca/mad_layout.hpp"
#include "verbs/softhca/session.hpp"
#include "verbs/softhca/sysfs.hpp"

namespace fabric::softhca {
namespace {

constexpr std::size_t kHeader = sizeof(ib_user_mad);
constexpr std::size_t kShortestMad = 36;  // as the kernel: a MAD header and room for RMPP's

enum { kPortDown = 1, kPortInit = 2, kPortActive = 4 };

/// More than a socket carries at once.
constexpr std::size_t kLargestMessage = 1 << 20;

struct OpenPort {
  std::uint32_t name;  // at the hardware
  int number;          // of the HCA
  std::bitset<UMAD_CA_MAX_AGENTS> agents;
  std::bitset<UMAD_CA_MAX_AGENTS> segmenting;  // those that leave RMPP to the kernel
  std::vector<std::uint8_t> held;              // a message for which the caller's buffer was too small
  std::unique_ptr<std::uint8_t[]> overflow;    // of kLargestMessage
};

std::mutex ports_mutex;
std::map<int, OpenPort> ports;  // by descriptor

bool is_holding(int descriptor) {
  const std::lock_guard lock(ports_mutex);
  const auto port = ports.find(descriptor);
  return port != ports.end() && !port->second.held.empty();
}

// The session, or nullptr with errno where there is none.
Session* find_session() {
  try {
    return &Session::get();
  } catch (const std::system_error& problem) {
    errno = problem.code().value();
    return nullptr;
  }
}

const SharedPort& shared_port(const Session& session, const HcaDescription& hca, int port) {
  return session.memory().ports[hca.ports[static_cast<std::size_t>(port - 1)]];
}

// How good a port is for whoever leaves the choice to the library: active, else with a link, else any.
int rank(const SharedPort& port) {
  return port.state == kPortActive ? 2 : port.state >= kPortInit ? 1 : 0;
}

struct Choice {
  const HcaDescription* hca = nullptr;
  int port = 0;
};

// The port that is meant by a name that may be missing and a number that may be 0.
Choice resolve(const Session& session, const char* name, int number) {
  Choice best;
  int best_rank = -1;
  for (const HcaDescription& hca : session.hcas()) {
    if ((name != nullptr && *name != '\0' && hca.name != name) || session.insertion(hca) == 0) continue;
    for (int port = 1; port <= static_cast<int>(hca.ports.size()); ++port) {
      if (number > 0 && port != number) continue;
      const int candidate = rank(shared_port(session, hca, port));
      if (candidate > best_rank) {
        best = {&hca, port};
        best_rank = candidate;
      }
    }
  }
  return best;
}

// Fills in a port; the P_Key table is allocated and belongs to the caller.
int describe_port(const Session& session, const HcaDescription& hca, int number, umad_port_t& port) {
  const SharedPort& shared = shared_port(session, hca, number);
  port = {};
  std::snprintf(port.ca_name, sizeof port.ca_name, "%s", hca.name.c_str());
  std::snprintf(port.link_layer, sizeof port.link_layer, "InfiniBand");
  port.portnum = number;
  port.pkeys = static_cast<uint16_t*>(std::calloc(kMaxPkeys, sizeof(uint16_t)));
  if (port.pkeys == nullptr) return -ENOMEM;
  port.pkeys_size = kMaxPkeys;
  for (;;) {  // all of it from one moment
    const std::uint32_t before = shared.change;
    port.base_lid = shared.lid;
    port.lmc = shared.lmc;
    port.sm_lid = shared.sm_lid;
    port.sm_sl = shared.sm_sl;
    port.state = shared.state;
    port.phys_state = shared.phys_state;
    port.rate = static_cast<unsigned>(link_rate(shared.active_width, shared.active_speed));
    port.capmask = htobe32(shared.cap_mask);
    port.gid_prefix = htobe64(shared.gid_prefix);
    port.port_guid = htobe64(shared.guid);
    for (unsigned i = 0; i < kMaxPkeys; ++i) port.pkeys[i] = shared.pkeys[i];
    if (before % 2 == 0 && shared.change == before) return 0;
  }
}

// Ports of all HCAs in order: the number in umadN and issmN.
int device_number(const Session& session, const HcaDescription& hca, int port) {
  int number = port - 1;
  for (const HcaDescription& other : session.hcas()) {
    if (other.number < hca.number) number += static_cast<int>(other.ports.size());
  }
  return number;
}

// Asks the hardware for an agent. Its number, or a negative errno.
int register_agent(int descriptor, const AgentRequest& agent) {
  Session* session = find_session();
  if (session == nullptr) return -errno;
  const std::lock_guard lock(ports_mutex);
  const auto port = ports.find(descriptor);
  if (port == ports.end()) return -EBADF;
  try {
    const Reply reply =
        session->call({.call = Call::register_agent, .key = port->second.name, .agent = agent});
    if (reply.error != 0) return -reply.error;
    port->second.agents.set(reply.value);
    port->second.segmenting.set(reply.value, agent.rmpp_version != 0 && agent.user_rmpp == 0);
    return static_cast<int>(reply.value);
  } catch (const std::system_error&) {
    return -EIO;
  }
}

std::uint32_t queue_pair_of(int mgmt_class) {
  return mgmt_class == 0x01 || mgmt_class == 0x81 ? 0 : 1;
}

// What the kernel's write(2) refuses at once.
bool makes_sense(const OpenPort& port, std::size_t agent, const ib_user_mad& message, std::size_t length) {
  if (length < kShortestMad) return false;
  const auto* mad = reinterpret_cast<const std::uint8_t*>(message.data);
  const bool segmented = port.segmenting.test(agent) && (mad[kRmppFlags] & kRmppActive) != 0;
  if (length > std::tuple_size_v<Mad> && !segmented) return false;
  if (message.addr.pkey_index >= kMaxPkeys) return false;
  if (mad[kMgmtClass] != kClassSubnDirected || length < std::tuple_size_v<Mad>) return true;
  // A directed route begins at this port (14.2.2, C14-9).
  const bool request = (mad[kStatus] & kDirectionBit) == 0;
  return mad[kHopCount] <= kMaxHops &&
         !(request && mad[kHopCount] != 0 && mad[kHopPointer] == 0 && mad[kInitialPath + 1] != port.number);
}

}  // namespace

int hold_issm(int number) {
  Session* session = find_session();
  if (session == nullptr) return -1;
  for (const HcaDescription& hca : session->hcas()) {
    for (int port = 1; port <= static_cast<int>(hca.ports.size()); ++port) {
      if (device_number(*session, hca, port) != number) continue;
      try {
        int descriptor = -1;
        const Reply reply = session->call(
            {.call = Call::hold_issm, .hca = hca.number, .port = static_cast<std::uint32_t>(port)}, -1,
            &descriptor);
        errno = reply.error;
        return descriptor;
      } catch (const std::system_error&) {
        errno = EIO;
        return -1;
      }
    }
  }
  errno = ENXIO;
  return -1;
}

}  // namespace fabric::softhca

using namespace fabric::softhca;

extern "C" {

// --- looking ---

int umad_init(void) {
  return 0;
}

int umad_done(void) {
  return 0;
}

int umad_get_cas_names(char names[][UMAD_CA_NAME_LEN], int max) {
  const Session* session = find_session();
  if (session == nullptr) return 0;
  int count = 0;
  for (const HcaDescription& hca : session->hcas()) {
    if (count < max && session->insertion(hca) != 0)
      std::snprintf(names[count++], UMAD_CA_NAME_LEN, "%s", hca.name.c_str());
  }
  return count;
}

int umad_get_port(const char* ca_name, int number, umad_port_t* port) {
  const Session* session = find_session();
  if (session == nullptr) return -ENODEV;
  const Choice choice = resolve(*session, ca_name, number);
  if (choice.hca == nullptr) return -ENODEV;
  return describe_port(*session, *choice.hca, choice.port, *port);
}

int umad_release_port(umad_port_t* port) {
  std::free(port->pkeys);
  port->pkeys = nullptr;
  port->pkeys_size = 0;
  return 0;
}

int umad_release_ca(umad_ca_t* ca) {
  for (umad_port_t*& port : ca->ports) {
    if (port == nullptr) continue;
    umad_release_port(port);
    std::free(port);
    port = nullptr;
  }
  return 0;
}

int umad_get_ca(const char* ca_name, umad_ca_t* ca) {
  const Session* session = find_session();
  if (session == nullptr) return -ENODEV;
  const HcaDescription* hca = resolve(*session, ca_name, 0).hca;
  if (hca == nullptr) return -ENODEV;
  *ca = {};
  std::snprintf(ca->ca_name, sizeof ca->ca_name, "%s", hca->name.c_str());
  std::snprintf(ca->fw_ver, sizeof ca->fw_ver, "%s", hca->firmware.c_str());
  std::snprintf(ca->ca_type, sizeof ca->ca_type, "%s", hca->board_id.c_str());
  std::snprintf(ca->hw_ver, sizeof ca->hw_ver, "%x", hca->hardware_version);
  ca->node_type = 1;
  ca->numports = std::min<int>(static_cast<int>(hca->ports.size()), UMAD_CA_MAX_PORTS - 1);
  ca->node_guid = htobe64(hca->node_guid);
  ca->system_guid = htobe64(hca->system_image_guid);
  for (int number = 1; number <= ca->numports; ++number) {
    ca->ports[number] = static_cast<umad_port_t*>(std::calloc(1, sizeof(umad_port_t)));
    if (ca->ports[number] == nullptr || describe_port(*session, *hca, number, *ca->ports[number]) != 0) {
      umad_release_ca(ca);
      return -ENOMEM;
    }
  }
  return 0;
}

int umad_get_ca_portguids(const char* ca_name, __be64* guids, int max) {
  const Session* session = find_session();
  if (session == nullptr) return -ENODEV;
  const HcaDescription* hca = resolve(*session, ca_name, 0).hca;
  if (hca == nullptr) return -ENODEV;
  const int count = static_cast<int>(hca->ports.size()) + 1;  // entry 0 is a switch's
  if (guids != nullptr) {
    if (count > max) return -ENOMEM;
    guids[0] = 0;
    for (int port = 1; port < count; ++port) guids[port] = htobe64(shared_port(*session, *hca, port).guid);
  }
  return count;
}

struct umad_device_node* umad_get_ca_device_list(void) {
  const Session* session = find_session();
  if (session == nullptr) return nullptr;
  umad_device_node* head = nullptr;
  umad_device_node** end = &head;
  for (const HcaDescription& hca : session->hcas()) {
    if (session->insertion(hca) == 0) continue;
    auto* node = static_cast<umad_device_node*>(std::calloc(1, sizeof(umad_device_node)));
    if (node == nullptr) break;
    node->ca_name = ::strdup(hca.name.c_str());
    *end = node;
    end = &node->next;
  }
  if (head == nullptr) errno = 0;  // no devices, and no error
  return head;
}

void umad_free_ca_device_list(struct umad_device_node* head) {
  while (head != nullptr) {
    umad_device_node* next = head->next;
    std::free(const_cast<char*>(head->ca_name));
    std::free(head);
    head = next;
  }
}

int umad_get_issm_path(const char* ca_name, int number, char path[], int max) {
  const Session* session = find_session();
  if (session == nullptr) return -ENODEV;
  const Choice choice = resolve(*session, ca_name, number);
  if (choice.hca == nullptr) return -EINVAL;
  std::snprintf(path, static_cast<std::size_t>(max), "%s%d", kIssmPath,
                device_number(*session, *choice.hca, choice.port));
  return 0;
}

// --- ports ---

int umad_open_port(const char* ca_name, int number) {
  Session* session = find_session();
  if (session == nullptr) return -ENODEV;
  const Choice choice = resolve(*session, ca_name, number);
  if (choice.hca == nullptr) return -ENODEV;
  try {
    int descriptor = -1;
    const Reply reply = session->call(
        {.call = Call::open_umad, .hca = choice.hca->number, .port = static_cast<std::uint32_t>(choice.port)},
        -1, &descriptor);
    if (reply.error != 0 || descriptor < 0) return -EIO;
    const std::lock_guard lock(ports_mutex);
    ports.insert_or_assign(descriptor, OpenPort{reply.value, choice.port, {}, {}, {}, {}});
    return descriptor;
  } catch (const std::system_error&) {
    return -EIO;
  }
}

int umad_close_port(int descriptor) {
  const std::lock_guard lock(ports_mutex);
  ports.erase(descriptor);
  ::close(descriptor);
  return 0;
}

int umad_get_fd(int descriptor) {
  return descriptor;
}

int umad_register(int descriptor, int mgmt_class, int version, uint8_t rmpp_version,
                  long method_mask[16 / sizeof(long)]) {
  AgentRequest agent{.qpn = queue_pair_of(mgmt_class),
                     .mgmt_class = static_cast<std::uint32_t>(mgmt_class),
                     .class_version = static_cast<std::uint32_t>(version),
                     .rmpp_version = rmpp_version,
                     .oui = UMAD_OPENIB_OUI};  // the library's own, for vendor classes
  if (method_mask != nullptr) std::memcpy(agent.method_mask, method_mask, sizeof agent.method_mask);
  const int id = register_agent(descriptor, agent);
  if (id >= 0) return id;
  errno = -id;
  return -EPERM;
}

int umad_register_oui(int descriptor, int mgmt_class, uint8_t rmpp_version, uint8_t oui[3],
                      long method_mask[16 / sizeof(long)]) {
  if (mgmt_class < 0x30 || mgmt_class > 0x4F) return -EINVAL;
  AgentRequest agent{
      .mgmt_class = static_cast<std::uint32_t>(mgmt_class), .class_version = 1, .rmpp_version = rmpp_version};
  agent.oui = std::uint32_t{oui[0]} << 16 | std::uint32_t{oui[1]} << 8 | oui[2];
  if (method_mask != nullptr) std::memcpy(agent.method_mask, method_mask, sizeof agent.method_mask);
  const int id = register_agent(descriptor, agent);
  if (id >= 0) return id;
  errno = -id;
  return -EPERM;
}

int umad_register2(int descriptor, struct umad_reg_attr* attr, uint32_t* agent_id) {
  if (attr == nullptr || agent_id == nullptr) return EINVAL;
  if ((attr->flags & ~static_cast<std::uint32_t>(UMAD_USER_RMPP)) != 0) {
    attr->flags = UMAD_USER_RMPP;  // what there is
    return EINVAL;
  }
  AgentRequest agent{.qpn = queue_pair_of(attr->mgmt_class),
                     .mgmt_class = attr->mgmt_class,
                     .class_version = attr->mgmt_class_version,
                     .rmpp_version = attr->rmpp_version,
                     .user_rmpp = attr->flags & UMAD_USER_RMPP,
                     .oui = attr->oui};
  std::memcpy(agent.method_mask, attr->method_mask, sizeof agent.method_mask);
  const int id = register_agent(descriptor, agent);
  if (id < 0) return -id;
  *agent_id = static_cast<uint32_t>(id);
  return 0;
}

int umad_unregister(int descriptor, int agent) {
  Session* session = find_session();
  const std::lock_guard lock(ports_mutex);
  const auto port = ports.find(descriptor);
  if (session == nullptr || port == ports.end() || agent < 0 || agent >= UMAD_CA_MAX_AGENTS ||
      !port->second.agents.test(static_cast<std::size_t>(agent))) {
    errno = EINVAL;
    return -1;
  }
  port->second.agents.reset(static_cast<std::size_t>(agent));
  try {
    const Reply reply = session->call({.call = Call::unregister_agent,
                                       .value = static_cast<std::uint32_t>(agent),
                                       .key = port->second.name});
    errno = reply.error;
    return reply.error == 0 ? 0 : -1;
  } catch (const std::system_error&) {
    errno = EIO;
    return -1;
  }
}

// --- MADs ---

void* umad_get_mad(void* umad) {
  return static_cast<ib_user_mad*>(umad)->data;
}

size_t umad_size(void) {
  return kHeader;
}

int umad_status(void* umad) {
  return static_cast<int>(static_cast<ib_user_mad*>(umad)->status);
}

ib_mad_addr_t* umad_get_mad_addr(void* umad) {
  return &static_cast<ib_user_mad*>(umad)->addr;
}

int umad_set_grh(void* umad, void* mad_addr) {
  ib_mad_addr_t& address = static_cast<ib_user_mad*>(umad)->addr;
  address.grh_present = mad_addr != nullptr;
  if (mad_addr != nullptr) {
    const auto& given = *static_cast<const ib_mad_addr_t*>(mad_addr);
    std::memcpy(address.gid, given.gid, sizeof address.gid);
    address.flow_label = htobe32(given.flow_label);
    address.hop_limit = given.hop_limit;
    address.traffic_class = given.traffic_class;
  }
  return 0;
}

int umad_set_grh_net(void* umad, void* mad_addr) {
  ib_mad_addr_t& address = static_cast<ib_user_mad*>(umad)->addr;
  umad_set_grh(umad, mad_addr);
  if (mad_addr != nullptr) address.flow_label = static_cast<const ib_mad_addr_t*>(mad_addr)->flow_label;
  return 0;
}

int umad_set_addr_net(void* umad, __be16 dlid, __be32 dqp, int sl, __be32 qkey) {
  ib_mad_addr_t& address = static_cast<ib_user_mad*>(umad)->addr;
  address.qpn = dqp;
  address.lid = dlid;
  address.qkey = qkey;
  address.sl = static_cast<uint8_t>(sl);
  return 0;
}

int umad_set_addr(void* umad, int dlid, int dqp, int sl, int qkey) {
  return umad_set_addr_net(umad, htobe16(static_cast<uint16_t>(dlid)), htobe32(static_cast<uint32_t>(dqp)),
                           sl, htobe32(static_cast<uint32_t>(qkey)));
}

int umad_set_pkey(void* umad, int pkey_index) {
  static_cast<ib_user_mad*>(umad)->addr.pkey_index = static_cast<uint16_t>(pkey_index);
  return 0;
}

int umad_get_pkey(void* umad) {
  return static_cast<ib_user_mad*>(umad)->addr.pkey_index;
}

int umad_send(int descriptor, int agent, void* umad, int length, int timeout_ms, int retries) {
  auto* mad = static_cast<ib_user_mad*>(umad);
  mad->timeout_ms = static_cast<uint32_t>(timeout_ms);
  mad->retries = static_cast<uint32_t>(retries);
  mad->agent_id = static_cast<uint32_t>(agent);
  bool good = false;
  {
    const std::lock_guard lock(ports_mutex);
    const auto port = ports.find(descriptor);
    good = port != ports.end() && agent >= 0 && agent < UMAD_CA_MAX_AGENTS && length >= 0 &&
           port->second.agents.test(static_cast<std::size_t>(agent)) &&
           makes_sense(port->second, static_cast<std::size_t>(agent), *mad, static_cast<std::size_t>(length));
  }
  errno = good ? 0 : EINVAL;
  if (good && send_message(descriptor, umad, kHeader + static_cast<std::size_t>(length))) return 0;
  if (errno == 0) errno = EIO;
  return -EIO;
}

int umad_poll(int descriptor, int timeout_ms) {
  pollfd readable{descriptor, POLLIN, 0};
  const int count = ::poll(&readable, 1, timeout_ms);
  if (count == 1) return 0;
  if (count == 0) {
    errno = ETIMEDOUT;
    return -ETIMEDOUT;
  }
  return -errno;
}

int umad_recv(int descriptor, void* umad, int* length, int timeout_ms) {
  errno = 0;
  if (umad == nullptr || length == nullptr) {
    errno = EINVAL;
    return -EINVAL;
  }
  if (timeout_ms != 0 && !is_holding(descriptor)) {
    if (const int result = umad_poll(descriptor, timeout_ms); result < 0) return result;
  }
  const auto room = static_cast<std::size_t>(std::max(*length, 0));
  const std::lock_guard lock(ports_mutex);
  const auto port = ports.find(descriptor);
  if (port == ports.end()) {
    errno = EBADF;
    return -EBADF;
  }
  // In one call: what does not fit into the caller's buffer goes into another, and waits there.
  std::vector<std::uint8_t>& held = port->second.held;
  std::size_t size = held.size();
  if (size == 0) {
    auto& overflow = port->second.overflow;
    if (!overflow) overflow.reset(new std::uint8_t[kLargestMessage]);
    std::array<iovec, 2> parts{{{umad, kHeader + room}, {overflow.get(), kLargestMessage}}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t taken = ::recvmsg(descriptor, &message, MSG_DONTWAIT);
    if (taken == 0) errno = EIO;  // the hardware is gone
    if (taken <= 0) return -errno;
    size = static_cast<std::size_t>(taken);
    if (size > kHeader + room) {
      const auto* begin = static_cast<const std::uint8_t*>(umad);
      held.assign(begin, begin + kHeader + room);
      held.insert(held.end(), overflow.get(), overflow.get() + (size - kHeader - room));
    }
  } else {
    std::copy_n(held.begin(), std::min(size, kHeader + room), static_cast<std::uint8_t*>(umad));
    if (size <= kHeader + room) held.clear();
  }
  *length = static_cast<int>(size - kHeader);
  if (size > kHeader + room) {
    errno = size - kHeader > 256 ? ENOSPC : EINVAL;
    return -errno;
  }
  return static_cast<int>(static_cast<ib_user_mad*>(umad)->agent_id);
}

}  // extern "C"
