#include "verbs/mad_port.hpp"

#include <endian.h>
#include <fcntl.h>
#include <infiniband/umad.h>
#include <infiniband/umad_types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <initializer_list>

#include "verbs/handles.hpp"

namespace fabric::verbs {

namespace {

struct MethodMask {
  std::array<long, 16 / sizeof(long)> bits{};
  explicit MethodMask(std::initializer_list<MadMethod> methods) {
    constexpr std::size_t kBits = sizeof(long) * CHAR_BIT;
    for (const MadMethod method : methods) {
      const auto number = static_cast<std::size_t>(method);
      bits[number / kBits] |= static_cast<long>(1UL << number % kBits);
    }
  }
};

constexpr int kSegmentedHeader = 56;  ///< of administration, RMPP's included
constexpr std::size_t kRmppFlagsAt = 26;
constexpr std::uint8_t kRmppActive = 1;

std::string place(const std::string& device, std::uint8_t port) {
  return device + " port " + std::to_string(port);
}

}  // namespace

MadPort::MadPort(const std::string& device, std::uint8_t port, bool manage) {
  if (umad_init() < 0) throw VerbsError(ENODEV, "umad_init");
  port_ = umad_open_port(device.c_str(), port);
  if (port_ < 0) throw VerbsError(-port_, "umad_open_port " + place(device, port));
  try {
    set_nonblocking(umad_get_fd(port_));
    const auto enlist = [&](Agent agent, MadClass management_class, int version, MethodMask methods,
                            std::uint8_t rmpp = 0) {
      agents_[agent] =
          umad_register(port_, static_cast<int>(management_class), version, rmpp, methods.bits.data());
      if (agents_[agent] < 0)
        throw VerbsError(manage ? EBUSY : -agents_[agent],
                         "umad_register of class " + std::to_string(static_cast<int>(management_class)) +
                             " on " + place(device, port));
    };
    if (manage) {
      std::array<char, PATH_MAX> path{};
      if (umad_get_issm_path(device.c_str(), port, path.data(), path.size()) < 0)
        throw VerbsError(ENODEV, "issm of " + place(device, port));
      issm_ = open(path.data(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
      if (issm_ < 0) throw VerbsError(errno == EAGAIN ? EBUSY : errno, "open " + std::string(path.data()));
      const MethodMask management{MadMethod::get, MadMethod::set, MadMethod::trap};
      enlist(directed_route, MadClass::subnet_directed_route, 1, management);
      enlist(lid_routed, MadClass::subnet_lid_routed, 1, management);
      enlist(administration, MadClass::subnet_administration, 2,
             MethodMask{MadMethod::get, MadMethod::set, MadMethod::get_table, MadMethod::get_multi,
                        MadMethod::remove},
             UMAD_RMPP_VERSION);
    } else {
      enlist(directed_route, MadClass::subnet_directed_route, 1, MethodMask{});
      enlist(lid_routed, MadClass::subnet_lid_routed, 1, MethodMask{});
    }
    std::array<std::uint8_t, 3> oui{};
    store_big_endian<3>(oui, 0, kOui);
    MethodMask methods{MadMethod::send};
    agents_[handshake] = umad_register_oui(port_, static_cast<int>(MadClass::vendor_handshake), 0, oui.data(),
                                           methods.bits.data());
    if (agents_[handshake] < 0) throw VerbsError(EBUSY, "umad_register_oui on " + place(device, port));
  } catch (...) {
    close();
    throw;
  }
  buffer_.resize(umad_size() + Mad::kSize);
}

MadPort::~MadPort() {
  close();
}

void MadPort::close() noexcept {
  if (issm_ >= 0) ::close(issm_);
  for (const int agent : agents_)
    if (agent >= 0) umad_unregister(port_, agent);
  umad_close_port(port_);
}

int MadPort::descriptor() const {
  return umad_get_fd(port_);
}

std::optional<MadPort::Agent> MadPort::agent_for(const Mad& mad) const {
  switch (mad.management_class()) {
    case MadClass::subnet_directed_route:
      return directed_route;
    case MadClass::subnet_lid_routed:
      return lid_routed;
    case MadClass::subnet_administration:
      return administration;
    case MadClass::vendor_handshake:
      return handshake;
  }
  return std::nullopt;
}

bool MadPort::send(const Mad& mad, const MadAddress& destination, std::chrono::milliseconds timeout) {
  const auto agent = agent_for(mad);
  if (!agent || agents_[*agent] < 0) {
    ++counters_.unsent;
    return false;
  }
  return post(*agent, mad.bytes(), destination, timeout);
}

bool MadPort::send(std::span<const std::uint8_t> answer, const MadAddress& destination) {
  return post(administration, answer, destination, std::chrono::milliseconds{0});
}

bool MadPort::post(Agent agent, std::span<const std::uint8_t> bytes, const MadAddress& destination,
                   std::chrono::milliseconds timeout) {
  // At least a datagram: libibumad reads that much of what is shorter.
  buffer_.assign(umad_size() + std::max(bytes.size(), Mad::kSize), 0);
  void* umad = buffer_.data();
  umad_set_addr(umad, destination.lid.value(), static_cast<int>(destination.qpn.value()), destination.sl,
                destination.qpn == Qpn{0} ? 0 : static_cast<int>(UMAD_QKEY));
  umad_get_mad_addr(umad)->path_bits = destination.path_bits;
  umad_set_pkey(umad, destination.pkey_index);
  std::memcpy(umad_get_mad(umad), bytes.data(), bytes.size());
  if (umad_send(port_, agents_[agent], umad, static_cast<int>(bytes.size()),
                static_cast<int>(timeout.count()), 0) < 0) {
    ++counters_.unsent;
    return false;
  }
  ++counters_.sent;
  return true;
}

std::optional<MadPort::Incoming> MadPort::receive() {
  buffer_.resize(umad_size() + Mad::kSize);
  void* umad = buffer_.data();
  for (;;) {
    int length = Mad::kSize;
    const int agent = umad_recv(port_, umad, &length, 0);
    if (agent < 0) {
      const int error = errno != 0 ? errno : -agent;
      if (error == EAGAIN || error == EWOULDBLOCK || error == ETIMEDOUT || error == EINTR)
        return std::nullopt;
      if (error != ENOSPC) throw VerbsError(error, "umad_recv");
      ++counters_.malformed;  // longer than a datagram; the kernel keeps it until it is read in full
      std::vector<std::uint8_t> large(umad_size() + static_cast<std::size_t>(std::max(length, 0)));
      (void)umad_recv(port_, large.data(), &length, 0);
      continue;
    }
    const int status = umad_status(umad);
    auto* bytes = static_cast<std::uint8_t*>(umad_get_mad(umad));
    // What came in segments is as long as what it says, without padding.
    const bool segmented = length >= kSegmentedHeader &&
                           MadClass{bytes[1]} == MadClass::subnet_administration &&
                           (bytes[kRmppFlagsAt] & kRmppActive) != 0;
    if (segmented && length < static_cast<int>(Mad::kSize))
      std::fill(bytes + length, bytes + Mad::kSize, std::uint8_t{0});
    const auto mad = Mad::decode({bytes, Mad::kSize});
    if (!mad || (status == 0 && length < static_cast<int>(Mad::kSize) && !segmented)) {
      ++counters_.malformed;
      continue;
    }
    if (status != 0 && status != ETIMEDOUT) {
      // A request that could not be sent after all: the same to who waits for the answer.
      ++counters_.unsent;
    }
    ++counters_.received;
    const ib_mad_addr_t& address = *umad_get_mad_addr(umad);
    return Incoming{*mad,
                    MadAddress{.lid = Lid{be16toh(address.lid)},
                               .qpn = Qpn{be32toh(address.qpn)},
                               .sl = address.sl,
                               .path_bits = address.path_bits,
                               .pkey_index = address.pkey_index},
                    status != 0};
  }
}

}  // namespace fabric::verbs
