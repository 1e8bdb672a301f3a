// The MAD layer of a host's kernel (ib_mad, ib_umad): who gets a MAD that comes in, and what happens to one
// that a program sends. It follows what programs can see of Linux:
//
//   - An agent is registered for a class, a version and methods, and no two on a port for the same. It gets
//     what is unsolicited; responses go by transaction id, whose upper half is the agent's.
//   - A request with a timeout is sent again when it runs out, `retries` times; then its header comes back
//     with status ETIMEDOUT. A response that nobody waits for (any more) is dropped.
//   - Get and Set that nobody is registered for are answered with status 0x000C (unsupported method or
//     attribute); everything else that nobody wants vanishes.
//   - Agents with rmpp_version 1 send and get whole messages (rmpp.cpp).
//
// Pure: packets and time go in, packets and messages come out. Single-threaded.
#include "verbs/softhca/kernel_mad.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "verbs/softhca/mad_layout.hpp"

namespace fabric::softhca {
namespace {

constexpr std::size_t kVendorOui = 37;
constexpr std::uint8_t kFirstOuiClass = 0x30, kLastOuiClass = 0x4F;
constexpr unsigned kClassLimit = 80, kVersionLimit = 8;  // as the kernel's tables

bool has_oui(std::uint32_t mgmt_class) {
  return mgmt_class >= kFirstOuiClass && mgmt_class <= kLastOuiClass;
}

bool is_subnet_class(std::uint32_t mgmt_class) {
  return mgmt_class == kClassSubnLid || mgmt_class == kClassSubnDirected;
}

// TrapRepress answers a trap, though its number does not look like it.
bool is_response(const Mad& mad) {
  return (mad[kMethod] & kResponseBit) != 0 || mad[kMethod] == kMethodTrapRepress;
}

bool covers(const AgentRequest& what, std::uint8_t method) {
  return (what.method_mask[method / 64] >> (method % 64) & 1) != 0;
}

std::uint32_t oui_of(const Mad& mad) {
  return std::uint32_t{mad[kVendorOui]} << 16 | std::uint32_t{mad[kVendorOui + 1]} << 8 | mad[kVendorOui + 2];
}

bool same_registration(const AgentRequest& a, const AgentRequest& b) {
  return a.mgmt_class == b.mgmt_class && a.class_version == b.class_version &&
         (!has_oui(a.mgmt_class) || a.oui == b.oui);
}

}  // namespace

bool is_rmpp_class(std::uint8_t mgmt_class) {
  return mgmt_class == kClassSubnAdm || mgmt_class == 0x06 || mgmt_class == 0x10 || mgmt_class == 0x12 ||
         has_oui(mgmt_class);
}

std::size_t class_header_size(std::uint8_t mgmt_class) {
  if (mgmt_class == kClassSubnAdm) return 56;
  if (mgmt_class == 0x06 || mgmt_class == 0x10 || mgmt_class == 0x12) return 64;
  return has_oui(mgmt_class) ? 40 : kMadHeaderSize;
}

// --- users and agents ---

UmadId KernelMad::open(PortNumber port) {
  open_[next_user_] = {.port = port};
  return next_user_++;
}

void KernelMad::close(UmadId user) {
  const auto found = open_.find(user);
  if (found == open_.end()) return;
  for (Agent* agent : found->second.agents) {
    if (agent != nullptr) remove(*agent);
  }
  open_.erase(found);
}

int KernelMad::register_agent(UmadId user, const AgentRequest& request) {
  const auto found = open_.find(user);
  if (found == open_.end()) return -EBADF;
  const auto slot = std::find(found->second.agents.begin(), found->second.agents.end(), nullptr);
  if (slot == found->second.agents.end()) return -ENOMEM;
  if (request.qpn > 1 || request.rmpp_version > 1) return -EINVAL;
  const PortNumber port = found->second.port;
  listeners_.resize(std::max<std::size_t>(listeners_.size(), port + 1));

  const std::uint32_t mgmt_class = request.mgmt_class;
  if (mgmt_class != 0) {
    if (mgmt_class >= kClassLimit && mgmt_class != kClassSubnDirected) return -EINVAL;
    if (request.class_version >= kVersionLimit) return -EINVAL;
    if (has_oui(mgmt_class) && request.oui == 0) return -EINVAL;
    if (request.rmpp_version != 0 && !is_rmpp_class(static_cast<std::uint8_t>(mgmt_class))) return -EINVAL;
    if (is_subnet_class(mgmt_class) != (request.qpn == 0)) return -EINVAL;
    for (const Agent* other : listeners_[port]) {
      const bool overlap = (other->what.method_mask[0] & request.method_mask[0]) != 0 ||
                           (other->what.method_mask[1] & request.method_mask[1]) != 0;
      if (same_registration(other->what, request) && overlap) return -EINVAL;
    }
  }
  auto agent = std::make_unique<Agent>();
  agent->user = user;
  agent->id = static_cast<std::uint32_t>(slot - found->second.agents.begin());
  agent->high_tid = next_high_tid_++;
  agent->port = port;
  agent->what = request;
  *slot = agent.get();
  if (mgmt_class != 0) listeners_[port].push_back(agent.get());
  const auto id = static_cast<int>(agent->id);
  agents_[agent->high_tid] = std::move(agent);
  return id;
}

int KernelMad::unregister_agent(UmadId user, std::uint32_t id) {
  const auto found = open_.find(user);
  if (found == open_.end()) return -EBADF;
  if (id >= found->second.agents.size() || found->second.agents[id] == nullptr) return -EINVAL;
  remove(*found->second.agents[id]);
  return 0;
}

void KernelMad::remove(Agent& agent) {
  std::erase(listeners_[agent.port], &agent);
  open_[agent.user].agents[agent.id] = nullptr;
  agents_.erase(agent.high_tid);
}

KernelMad::Agent* KernelMad::find_agent(PortNumber port, const Mad& mad) {
  if (is_response(mad)) {
    const auto found = agents_.find(load32(mad, kTransaction));
    return found != agents_.end() && found->second->port == port ? found->second.get() : nullptr;
  }
  if (port >= listeners_.size()) return nullptr;
  for (Agent* agent : listeners_[port]) {
    const AgentRequest& what = agent->what;
    if (what.mgmt_class == mad[kMgmtClass] && what.class_version == mad[kClassVersion] &&
        (!has_oui(what.mgmt_class) || what.oui == oui_of(mad)) && covers(what, mad[kMethod])) {
      return agent;
    }
  }
  return nullptr;
}

// --- out ---

void KernelMad::send(TimePoint now, UmadId user, std::span<const std::uint8_t> message) {
  ib_user_mad header;
  if (message.size() < sizeof header + kMadHeaderSize) return;
  std::memcpy(&header, message.data(), sizeof header);
  const auto found = open_.find(user);
  if (found == open_.end() || header.agent_id >= UMAD_CA_MAX_AGENTS) return;
  Agent* agent = found->second.agents[header.agent_id];
  if (agent == nullptr) return;
  const std::span<const std::uint8_t> data = message.subspan(sizeof header);
  const SharedPort& port = model_.shared(agent->port);

  Packet packet{.dst_qp = ntohl(header.addr.qpn),
                .src_qp = agent->what.qpn,
                .dlid = ntohs(header.addr.lid),
                .slid = kPermissiveLid,
                .sl = header.addr.sl};
  if (packet.dst_qp > 1 || header.addr.pkey_index >= kMaxPkeys) return;
  if (port.lid != 0) {
    packet.slid = static_cast<std::uint16_t>(port.lid | (header.addr.path_bits & ((1u << port.lmc) - 1)));
  }
  if (packet.dst_qp == 1) {
    packet.pkey = port.pkeys[header.addr.pkey_index];
    packet.qkey = ntohl(header.addr.qkey);
  }
  if (header.addr.grh_present != 0) {
    GlobalRoute& route = packet.grh.emplace();
    const std::size_t gid = header.addr.gid_index < kMaxGids ? header.addr.gid_index : 0;
    store64(route.sgid, 0, port.gid_prefix);
    store64(route.sgid, 8, port.guids[gid]);
    std::copy_n(header.addr.gid, 16, route.dgid.begin());
    route.flow_label = ntohl(header.addr.flow_label);
    route.hop_limit = header.addr.hop_limit;
    route.traffic_class = header.addr.traffic_class;
  }
  std::copy_n(data.begin(), std::min(data.size(), packet.mad.size()), packet.mad.begin());
  if (!is_response(packet.mad)) store32(packet.mad, kTransaction, agent->high_tid);

  const bool segmented = agent->what.rmpp_version != 0 && agent->what.user_rmpp == 0 &&
                         is_rmpp_class(packet.mad[kMgmtClass]) && (packet.mad[kRmppFlags] & kRmppActive) != 0;
  if (segmented) return start_transfer(now, *agent, std::move(packet), header, data);
  if (data.size() > packet.mad.size()) return;
  if (!is_response(packet.mad) && header.timeout_ms != 0) {
    const std::uint64_t transaction = load64(packet.mad, kTransaction);
    const Duration timeout = std::chrono::milliseconds(header.timeout_ms);
    const auto [entry, is_new] =
        agent->pending.try_emplace(transaction, Pending{packet, header, timeout, header.retries, 0});
    if (!is_new) return;  // the kernel refuses a second one with the same id
    agent->reassemblies.erase({transaction, packet.dlid});  // of an earlier request with this id
    entry->second.timer = set_timer(now + timeout, TimerKind::pending, *agent, transaction);
  }
  model_.transmit(now, agent->port, std::move(packet));
}

// --- in ---

void KernelMad::receive(TimePoint now, PortNumber port, const Packet& packet) {
  Agent* agent = find_agent(port, packet.mad);
  if (agent == nullptr) {
    const std::uint8_t method = packet.mad[kMethod];
    if (method != kMethodGet && method != kMethodSet) return;
    Mad refusal = packet.mad;
    refusal[kMethod] = kMethodGetResp;
    store16(refusal, kStatus, kStatusBadAttribute);
    if (refusal[kMgmtClass] == kClassSubnDirected) refusal[kStatus] |= kDirectionBit;
    return model_.answer(now, port, packet, refusal);
  }
  const bool segmented = agent->what.rmpp_version != 0 && agent->what.user_rmpp == 0 &&
                         is_rmpp_class(packet.mad[kMgmtClass]) && (packet.mad[kRmppFlags] & kRmppActive) != 0;
  if (segmented) return receive_rmpp(now, *agent, packet);
  complete(*agent, packet, packet.mad);
}

// A whole message has come in.
void KernelMad::complete(Agent& agent, const Packet& packet, std::span<const std::uint8_t> data) {
  if (is_response(packet.mad)) {
    const auto request = agent.pending.find(load64(packet.mad, kTransaction));
    const bool expected =
        request != agent.pending.end() && request->second.packet.mad[kMgmtClass] == packet.mad[kMgmtClass];
    if (expected) {
      // Later segments of a message that the agent reassembles itself belong to the same request.
      agent.pending.erase(request);
    } else if (!(agent.what.user_rmpp != 0 && (packet.mad[kRmppFlags] & kRmppActive) != 0)) {
      return;
    }
  }
  deliver(agent, packet, data);
}

void KernelMad::deliver(const Agent& agent, const Packet& packet, std::span<const std::uint8_t> data) {
  const SharedPort& port = model_.shared(agent.port);
  ib_user_mad header{};
  header.agent_id = agent.id;
  header.length = static_cast<std::uint32_t>(sizeof header + data.size());
  header.addr.qpn = htonl(packet.src_qp);
  header.addr.lid = htons(packet.slid);
  header.addr.sl = packet.sl;
  if (packet.dlid != kPermissiveLid) {
    header.addr.path_bits = static_cast<std::uint8_t>(packet.dlid & ((1u << port.lmc) - 1));
  }
  if (packet.dst_qp == 1) {
    const auto entry = std::find_if(port.pkeys.begin(), port.pkeys.end(),
                                    [&](const auto& own) { return ((own ^ packet.pkey) & 0x7FFF) == 0; });
    if (entry != port.pkeys.end()) {
      header.addr.pkey_index = static_cast<std::uint16_t>(entry - port.pkeys.begin());
    }
  }
  if (packet.grh) {
    header.addr.grh_present = 1;
    std::copy(packet.grh->sgid.begin(), packet.grh->sgid.end(), header.addr.gid);
    header.addr.flow_label = htonl(packet.grh->flow_label);
    header.addr.hop_limit = packet.grh->hop_limit;
    header.addr.traffic_class = packet.grh->traffic_class;
  }
  users_.to_user(agent.user, header, data);
}

// No response came: the sender gets the header of its request, with what is wrong.
void KernelMad::give_back(const Agent& agent, const ib_user_mad& header, const Mad& mad) {
  ib_user_mad returned = header;
  returned.agent_id = agent.id;
  returned.status = ETIMEDOUT;
  returned.length = sizeof returned + kMadHeaderSize;
  users_.to_user(agent.user, returned, std::span(mad).first(kMadHeaderSize));
}

// --- time ---

std::uint64_t KernelMad::set_timer(TimePoint at, TimerKind kind, const Agent& agent,
                                   std::uint64_t transaction, std::uint16_t source) {
  timers_.push({at, next_serial_, kind, agent.high_tid, transaction, source});
  return next_serial_++;
}

// Timers are not taken out when what they were for has happened; they find nothing then.
void KernelMad::run(TimePoint now) {
  while (!timers_.empty() && timers_.top().at <= now) {
    const Timer timer = timers_.top();
    timers_.pop();
    const auto found = agents_.find(timer.high_tid);
    if (found == agents_.end()) continue;
    Agent& agent = *found->second;
    switch (timer.kind) {
      case TimerKind::pending: {
        const auto entry = agent.pending.find(timer.transaction);
        if (entry == agent.pending.end() || entry->second.timer != timer.serial) break;
        Pending& request = entry->second;
        if (request.retries_left == 0) {
          const Pending expired = std::move(request);
          agent.pending.erase(entry);
          give_back(agent, expired.header, expired.packet.mad);
        } else {
          --request.retries_left;
          request.timer = set_timer(now + request.timeout, TimerKind::pending, agent, timer.transaction);
          model_.transmit(now, agent.port, request.packet);
        }
        break;
      }
      case TimerKind::transfer: {
        const auto entry = agent.transfers.find(timer.transaction);
        if (entry != agent.transfers.end() && entry->second.timer == timer.serial) {
          transfer_timeout(now, agent, timer.transaction);
        }
        break;
      }
      case TimerKind::reassembly: {
        const auto entry = agent.reassemblies.find({timer.transaction, timer.source});
        if (entry != agent.reassemblies.end() && entry->second.timer == timer.serial) {
          agent.reassemblies.erase(entry);
        }
        break;
      }
    }
  }
}

std::optional<TimePoint> KernelMad::next_timer() const {
  if (timers_.empty()) return std::nullopt;
  return timers_.top().at;
}

}  // namespace fabric::softhca
