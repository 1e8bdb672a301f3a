// Reliable multi-packet transactions (volume 1, release 1.3, 13.6) for agents that leave them to the kernel.
//
// One way only, which is all that the classes in use need: a request of one packet, a response of many, or a
// message of many without a response. The first window is one segment, the next ones kWindow; the receiver
// acknowledges the end of each and the last segment, and the sender goes on from the last acknowledgement
// when it hears nothing.
#include <algorithm>
#include <cstring>

#include "verbs/softhca/kernel_mad.hpp"
#include "verbs/softhca/mad_layout.hpp"

namespace fabric::softhca {
namespace {

constexpr std::uint8_t kData = 1, kAcknowledgement = 2, kStop = 3, kAbort = 4;
constexpr std::uint32_t kWindow = 64;
constexpr std::uint32_t kSegmentPayload = 220;  // what the payload length counts: class header and data
constexpr std::uint32_t kFewestRetries = 3;
constexpr Duration kLongestAcknowledgementTime = std::chrono::seconds(2);
constexpr Duration kReassemblyTime = std::chrono::seconds(40);
constexpr Duration kMemoryOfComplete = std::chrono::seconds(10);

std::uint32_t segment_size(const Mad& mad) {
  return static_cast<std::uint32_t>(mad.size() - class_header_size(mad[kMgmtClass]));
}

}  // namespace

// --- out ---

void KernelMad::start_transfer(TimePoint now, Agent& agent, Packet packet, const ib_user_mad& header,
                               std::span<const std::uint8_t> mad) {
  const std::size_t headers = class_header_size(packet.mad[kMgmtClass]);
  if (mad.size() < headers) return;
  const std::uint64_t transaction = load64(packet.mad, kTransaction);
  Transfer transfer{.packet = packet,
                    .header = header,
                    .data = {mad.begin() + static_cast<std::ptrdiff_t>(headers), mad.end()},
                    .timeout = kLongestAcknowledgementTime,
                    .retries_left = std::max(header.retries, kFewestRetries)};
  if (header.timeout_ms != 0) {
    transfer.timeout = std::min<Duration>(transfer.timeout, std::chrono::milliseconds(header.timeout_ms));
  }
  const std::uint32_t size = segment_size(packet.mad);
  transfer.segments =
      std::max<std::uint32_t>(1, (static_cast<std::uint32_t>(transfer.data.size()) + size - 1) / size);
  if (!agent.transfers.try_emplace(transaction, std::move(transfer)).second) return;
  send_segments(now, agent, transaction);
}

// Everything that the window allows.
void KernelMad::send_segments(TimePoint now, Agent& agent, std::uint64_t transaction) {
  Transfer& transfer = agent.transfers.at(transaction);
  const std::size_t headers = class_header_size(transfer.packet.mad[kMgmtClass]);
  const std::uint32_t size = segment_size(transfer.packet.mad);
  const std::uint32_t pad = transfer.segments * size - static_cast<std::uint32_t>(transfer.data.size());
  transfer.timer = set_timer(now + transfer.timeout, TimerKind::transfer, agent, transaction);
  const PortNumber port = agent.port;
  std::vector<Packet> packets;
  while (transfer.next <= std::min(transfer.window, transfer.segments)) {
    Packet packet = transfer.packet;
    Mad& mad = packet.mad;
    const bool first = transfer.next == 1, last = transfer.next == transfer.segments;
    const std::size_t offset = std::size_t{transfer.next - 1} * size;
    std::fill(mad.begin() + static_cast<std::ptrdiff_t>(headers), mad.end(), 0);
    std::copy_n(transfer.data.begin() + static_cast<std::ptrdiff_t>(offset),
                std::min<std::size_t>(size, transfer.data.size() - offset),
                mad.begin() + static_cast<std::ptrdiff_t>(headers));
    mad[kRmppVersion] = 1;
    mad[kRmppType] = kData;
    mad[kRmppFlags] = static_cast<std::uint8_t>((mad[kRmppFlags] & 0xF8) | kRmppActive |
                                                (first ? kRmppFirst : 0) | (last ? kRmppLast : 0));
    store32(mad, kRmppSegment, transfer.next);
    store32(mad, kRmppPayload,
            last    ? kSegmentPayload - pad
            : first ? transfer.segments * kSegmentPayload - pad
                    : 0);
    packets.push_back(packet);
    ++transfer.next;
  }
  // From here on an acknowledgement may come back before the call returns, and end the transfer.
  for (Packet& packet : packets) model_.transmit(now, port, std::move(packet));
}

void KernelMad::receive_acknowledgement(TimePoint now, Agent& agent, const Packet& packet) {
  const std::uint64_t transaction = load64(packet.mad, kTransaction);
  const auto found = agent.transfers.find(transaction);
  if (found == agent.transfers.end()) return;
  Transfer& transfer = found->second;
  const std::uint32_t segment = load32(packet.mad, kRmppSegment), window = load32(packet.mad, kRmppPayload);
  if (segment > transfer.segments || window < segment || segment < transfer.acknowledged) return;
  if (segment > transfer.acknowledged) {
    transfer.acknowledged = segment;
    transfer.retries_left = std::max(transfer.header.retries, kFewestRetries);
  }
  transfer.window = std::max(transfer.window, window);
  if (transfer.acknowledged < transfer.segments) {
    transfer.next = std::max(transfer.next, transfer.acknowledged + 1);
    return send_segments(now, agent, transaction);
  }
  // All there. A request now waits for its response like any other.
  const Transfer sent = std::move(transfer);
  agent.transfers.erase(found);
  if ((sent.packet.mad[kMethod] & kResponseBit) == 0 && sent.header.timeout_ms != 0) {
    const Duration timeout = std::chrono::milliseconds(sent.header.timeout_ms);
    agent.pending[transaction] = {sent.packet, sent.header, timeout, 0,
                                  set_timer(now + timeout, TimerKind::pending, agent, transaction)};
  }
}

void KernelMad::transfer_timeout(TimePoint now, Agent& agent, std::uint64_t transaction) {
  Transfer& transfer = agent.transfers.at(transaction);
  if (transfer.retries_left == 0) {
    const Transfer failed = std::move(transfer);
    agent.transfers.erase(transaction);
    return give_back(agent, failed.header, failed.packet.mad);
  }
  --transfer.retries_left;
  transfer.next = transfer.acknowledged + 1;
  send_segments(now, agent, transaction);
}

// --- in ---

void KernelMad::receive_rmpp(TimePoint now, Agent& agent, const Packet& packet) {
  if (packet.mad[kRmppVersion] != 1) return;
  switch (packet.mad[kRmppType]) {
    case kData:
      return receive_segment(now, agent, packet);
    case kAcknowledgement:
      return receive_acknowledgement(now, agent, packet);
    case kStop:
    case kAbort:
      agent.transfers.erase(load64(packet.mad, kTransaction));
      agent.reassemblies.erase({load64(packet.mad, kTransaction), packet.slid});
      return;
    default:
      return;
  }
}

void KernelMad::receive_segment(TimePoint now, Agent& agent, const Packet& packet) {
  const Mad& mad = packet.mad;
  const std::uint64_t transaction = load64(mad, kTransaction);
  const std::uint32_t segment = load32(mad, kRmppSegment);
  const std::size_t headers = class_header_size(mad[kMgmtClass]);
  const std::uint32_t size = segment_size(mad);
  auto found = agent.reassemblies.find({transaction, packet.slid});
  if (found == agent.reassemblies.end()) {
    if (segment != 1 || (mad[kRmppFlags] & kRmppFirst) == 0) return;
    found =
        agent.reassemblies.emplace(std::pair{transaction, packet.slid}, Reassembly{.first = packet}).first;
    found->second.message.assign(mad.begin(), mad.begin() + static_cast<std::ptrdiff_t>(headers));
    found->second.timer =
        set_timer(now + kReassemblyTime, TimerKind::reassembly, agent, transaction, packet.slid);
  }
  Reassembly& reassembly = found->second;
  if (reassembly.complete || segment != reassembly.received + 1) {
    // Sent again because an acknowledgement was lost, or one before it is missing.
    if (segment <= reassembly.received) acknowledge(now, agent, reassembly);
    return;
  }
  ++reassembly.received;
  const bool last = (mad[kRmppFlags] & kRmppLast) != 0;
  std::uint32_t length = size;
  if (last) {
    const std::uint32_t payload = load32(mad, kRmppPayload);
    const std::uint32_t pad = payload <= kSegmentPayload ? kSegmentPayload - payload : 0;
    length = size - std::min(pad, size);
  }
  const auto data = mad.begin() + static_cast<std::ptrdiff_t>(headers);
  reassembly.message.insert(reassembly.message.end(), data, data + length);
  if (last) {
    reassembly.complete = true;
    reassembly.timer =
        set_timer(now + kMemoryOfComplete, TimerKind::reassembly, agent, transaction, packet.slid);
    const std::vector<std::uint8_t> message = std::move(reassembly.message);
    acknowledge(now, agent, reassembly);
    complete(agent, found->second.first, message);
  } else if (segment == reassembly.window) {
    reassembly.window += kWindow;
    acknowledge(now, agent, reassembly);
  }
}

void KernelMad::acknowledge(TimePoint now, const Agent& agent, const Reassembly& reassembly) {
  Mad mad = reassembly.first.mad;
  std::fill(mad.begin() + kRmppHeaderEnd, mad.end(), 0);
  if (mad[kMgmtClass] >= 0x30) {  // the OUI stays
    std::copy_n(reassembly.first.mad.begin() + kRmppHeaderEnd, 4, mad.begin() + kRmppHeaderEnd);
  }
  mad[kMethod] ^= kResponseBit;
  store16(mad, kStatus, 0);
  mad[kRmppType] = kAcknowledgement;
  mad[kRmppFlags] = kRmppActive;
  store32(mad, kRmppSegment, reassembly.received);
  store32(mad, kRmppPayload, reassembly.window);
  const Packet first = reassembly.first;
  model_.answer(now, agent.port, first, mad);
}

}  // namespace fabric::softhca
