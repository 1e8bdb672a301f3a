// The performance management agent of a HCA port: volume 1, release 1.3, 16.1.
//
// The counters in shared memory only ever grow; who moves data adds to them without asking anybody. Set
// remembers where a counter was, and what is reported is the difference, saturated at the width of the field.
// PortCounters and PortCountersExtended are cleared apart from each other, as they are separate attributes.
//
// Departures. There is nothing to sample: PortSamplesControl reports no counter that could be.
#include <infiniband/mad.h>

#include <algorithm>

#include "verbs/softhca/mad_layout.hpp"
#include "verbs/softhca/model.hpp"

namespace fabric::softhca {
namespace {

constexpr std::size_t kData = IB_PC_DATA_OFFS;
constexpr std::uint8_t kAllPorts = 0xFF;
constexpr std::uint16_t kAllPortSelect = 1 << 8, kExtendedWidth = 1 << 9, kXmitWaitSupported = 1 << 12;

struct Counter {
  MAD_FIELDS field;
  unsigned bits;
  std::uint32_t select;  // bit of CounterSelect; CounterSelect2 follows from bit 16 on
  std::atomic<std::uint64_t> SharedCounters::*source;
  unsigned divisor = 1;  // data is counted in units of four octets
};

constexpr std::array<Counter, 17> kCounters{{
    {IB_PC_ERR_SYM_F, 16, 1u << 0, &SharedCounters::symbol_errors},
    {IB_PC_LINK_RECOVERS_F, 8, 1u << 1, &SharedCounters::link_error_recovery},
    {IB_PC_LINK_DOWNED_F, 8, 1u << 2, &SharedCounters::link_downed},
    {IB_PC_ERR_RCV_F, 16, 1u << 3, &SharedCounters::rcv_errors},
    {IB_PC_ERR_PHYSRCV_F, 16, 1u << 4, &SharedCounters::rcv_remote_phys_errors},
    {IB_PC_ERR_SWITCH_REL_F, 16, 1u << 5, &SharedCounters::rcv_switch_relay_errors},
    {IB_PC_XMT_DISCARDS_F, 16, 1u << 6, &SharedCounters::xmit_discards},
    {IB_PC_ERR_XMTCONSTR_F, 8, 1u << 7, &SharedCounters::xmit_constraint_errors},
    {IB_PC_ERR_RCVCONSTR_F, 8, 1u << 8, &SharedCounters::rcv_constraint_errors},
    {IB_PC_ERR_LOCALINTEG_F, 4, 1u << 9, &SharedCounters::local_link_integrity_errors},
    {IB_PC_ERR_EXCESS_OVR_F, 4, 1u << 10, &SharedCounters::excessive_buffer_overruns},
    {IB_PC_VL15_DROPPED_F, 16, 1u << 11, &SharedCounters::vl15_dropped},
    {IB_PC_XMT_BYTES_F, 32, 1u << 12, &SharedCounters::xmit_data, 4},
    {IB_PC_RCV_BYTES_F, 32, 1u << 13, &SharedCounters::rcv_data, 4},
    {IB_PC_XMT_PKTS_F, 32, 1u << 14, &SharedCounters::xmit_packets},
    {IB_PC_RCV_PKTS_F, 32, 1u << 15, &SharedCounters::rcv_packets},
    {IB_PC_XMT_WAIT_F, 32, 1u << 16, &SharedCounters::xmit_wait},
}};

constexpr std::array<Counter, 8> kExtendedCounters{{
    {IB_PC_EXT_XMT_BYTES_F, 64, 1u << 0, &SharedCounters::xmit_data, 4},
    {IB_PC_EXT_RCV_BYTES_F, 64, 1u << 1, &SharedCounters::rcv_data, 4},
    {IB_PC_EXT_XMT_PKTS_F, 64, 1u << 2, &SharedCounters::xmit_packets},
    {IB_PC_EXT_RCV_PKTS_F, 64, 1u << 3, &SharedCounters::rcv_packets},
    {IB_PC_EXT_XMT_UPKTS_F, 64, 1u << 4, &SharedCounters::unicast_xmit_packets},
    {IB_PC_EXT_RCV_UPKTS_F, 64, 1u << 5, &SharedCounters::unicast_rcv_packets},
    {IB_PC_EXT_XMT_MPKTS_F, 64, 1u << 6, &SharedCounters::multicast_xmit_packets},
    {IB_PC_EXT_RCV_MPKTS_F, 64, 1u << 7, &SharedCounters::multicast_rcv_packets},
}};

std::uint64_t limit(const Counter& counter) {
  return counter.bits == 64 ? UINT64_MAX : (std::uint64_t{1} << counter.bits) - 1;
}

std::uint64_t get(Mad& mad, const Counter& counter) {
  if (counter.bits == 64) return ::mad_get_field64(mad.data(), kData, counter.field);
  return ::mad_get_field(mad.data(), kData, counter.field);
}

void set(Mad& mad, const Counter& counter, std::uint64_t value) {
  if (counter.bits == 64) {
    ::mad_set_field64(mad.data(), kData, counter.field, value);
  } else {
    ::mad_set_field(mad.data(), kData, counter.field, static_cast<std::uint32_t>(value));
  }
}

struct Counted {
  const SharedCounters& counters;
  std::array<std::uint64_t, kCounters.size()>& base;  // in the units of the counters, not of the field
};

// Set writes the selected counters of each port, then, as Get, all are reported: the sum, where all ports
// were selected.
template <std::size_t n>
void exchange(const std::array<Counter, n>& table, std::vector<Counted>& ports, bool write,
              std::uint32_t select, Mad& mad) {
  for (std::size_t i = 0; i < n; ++i) {
    const Counter& counter = table[i];
    std::uint64_t sum = 0;
    for (Counted& port : ports) {
      const std::uint64_t raw = (port.counters.*counter.source).load(std::memory_order_relaxed);
      if (write && (select & counter.select) != 0) port.base[i] = raw - get(mad, counter) * counter.divisor;
      sum += (raw - port.base[i]) / counter.divisor;
    }
    set(mad, counter, std::min(sum, limit(counter)));
  }
}

}  // namespace

bool Model::handle_gmp(PortNumber number, const Packet& packet, std::optional<Mad>& reply) {
  const std::uint8_t method = packet.mad[kMethod];
  if (packet.mad[kMgmtClass] != kClassPerformance || (method & kResponseBit) != 0) return false;

  Mad answer = packet.mad;
  const bool write = method == kMethodSet;
  const std::uint16_t attribute = load16(answer, kAttribute);
  std::uint16_t status = 0;

  // PortSelect: one port of this HCA, or all of them.
  const auto selected = static_cast<std::uint8_t>(::mad_get_field(answer.data(), kData, IB_PC_PORT_SELECT_F));
  const ModelHca& hca = hca_of(number);
  std::vector<PortNumber> ports;
  if (selected == kAllPorts) ports = hca.ports;
  if (selected >= 1 && selected <= hca.ports.size()) ports = {hca.ports[selected - 1]};

  if (answer[kBaseVersion] != 1 || answer[kClassVersion] != 1) {
    status = kStatusBadVersion;
  } else if (method != kMethodGet && method != kMethodSet) {
    status = kStatusBadMethod;
  } else if (attribute == CLASS_PORT_INFO) {
    if (write) {
      status = kStatusBadAttribute;
    } else {
      std::fill(answer.begin() + kData, answer.end(), 0);
      ::mad_set_field(answer.data(), kData, IB_CPI_BASEVER_F, 1);
      ::mad_set_field(answer.data(), kData, IB_CPI_CLASSVER_F, 1);
      ::mad_set_field(answer.data(), kData, IB_CPI_CAPMASK_F,
                      kAllPortSelect | kExtendedWidth | kXmitWaitSupported);
      ::mad_set_field(answer.data(), kData, IB_CPI_RESP_TIME_VALUE_F, 16);
    }
  } else if (attribute == IB_GSI_PORT_COUNTERS || attribute == IB_GSI_PORT_COUNTERS_EXT) {
    surroundings_.counters_wanted();
    if (ports.empty()) {
      status = kStatusBadValue;
    } else if (attribute == IB_GSI_PORT_COUNTERS) {
      std::vector<Counted> counted;
      for (const PortNumber port : ports)
        counted.push_back({memory(port).counters, ports_[port].counters_base});
      const std::uint32_t select = ::mad_get_field(answer.data(), kData, IB_PC_COUNTER_SELECT_F) |
                                   ::mad_get_field(answer.data(), kData, IB_PC_COUNTER_SELECT2_F) << 16;
      exchange(kCounters, counted, write, select, answer);
    } else {
      std::vector<Counted> counted;
      for (const PortNumber port : ports)
        counted.push_back({memory(port).counters, ports_[port].extended_base});
      const std::uint32_t select = ::mad_get_field(answer.data(), kData, IB_PC_EXT_COUNTER_SELECT_F);
      exchange(kExtendedCounters, counted, write, select, answer);
    }
  } else if (attribute == IB_GSI_PORT_SAMPLES_CONTROL && !write) {
    std::fill(answer.begin() + kData, answer.end(), 0);
    ::mad_set_field(answer.data(), kData, IB_PSC_PORT_SELECT_F, selected);
  } else {
    status = kStatusBadAttribute;
  }
  answer[kMethod] = static_cast<std::uint8_t>(
      method == kMethodGet || method == kMethodSet ? kMethodGetResp : method | kResponseBit);
  store16(answer, kStatus, status);
  reply = answer;
  return true;
}

}  // namespace fabric::softhca
