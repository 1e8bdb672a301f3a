// A lab of the software HCA on a simulated clock, with what leaves the hardware written down.
#pragma once

#include <gtest/gtest.h>
#include <infiniband/mad.h>

#include <memory>
#include <utility>
#include <vector>

#include "verbs/softhca/mad_layout.hpp"
#include "verbs/softhca/model.hpp"

namespace fabric::softhca::testing {

/// h1..hN with one HCA of two ports each; hK port 2 to hK+1 port 1.
inline LabDescription chain(unsigned hosts) {
  LabDescription lab;
  for (unsigned h = 0; h < hosts; ++h) lab.hosts.push_back({"h" + std::to_string(h + 1), {2}});
  for (unsigned h = 0; h + 1 < hosts; ++h) lab.cables.push_back({{h, 0, 2}, {h + 1, 0, 1}});
  return lab;
}

class ModelFixture : public ::testing::Test, public Model::Surroundings {
 public:
  explicit ModelFixture(unsigned hosts = 2, std::uint64_t seed = 1)
      : memory(std::make_unique<LabMemory>()), model(chain(hosts), *memory, seed, *this) {}

  void port_event(PortNumber port, ibv_event_type event) override { events.emplace_back(port, event); }
  void adapter_removed(unsigned host, unsigned) override { removed.push_back(host); }
  void adapter_inserted(unsigned host, unsigned) override { inserted.push_back(host); }
  void received(PortNumber port, const Packet& packet) override { to_software.emplace_back(port, packet); }

  /// Port `number` of host `host`, both from 1.
  static PortNumber port(unsigned host, unsigned number) { return (host - 1) * 2 + number - 1; }
  SharedPort& shared(PortNumber number) { return memory->ports[number]; }

  void advance(Duration time) {
    const TimePoint until = now + time;
    while (model.next_timer() && *model.next_timer() <= until) {
      now = std::max(now, *model.next_timer());
      model.run(now);
    }
    now = until;
  }

  static Mad smp(std::uint8_t method, std::uint16_t attribute, std::uint32_t modifier = 0) {
    Mad mad{};
    mad[kBaseVersion] = mad[kClassVersion] = 1;
    mad[kMgmtClass] = kClassSubnLid;
    mad[kMethod] = method;
    store64(mad, kTransaction, 0x1234);
    store16(mad, kAttribute, attribute);
    store32(mad, kModifier, modifier);
    return mad;
  }

  static Mad directed(Mad mad, const std::vector<std::uint8_t>& route) {
    mad[kMgmtClass] = kClassSubnDirected;
    mad[kHopCount] = static_cast<std::uint8_t>(route.size());
    store16(mad, kDrSlid, kPermissiveLid);
    store16(mad, kDrDlid, kPermissiveLid);
    for (std::size_t i = 0; i < route.size(); ++i) mad[kInitialPath + 1 + i] = route[i];
    return mad;
  }

  void send_smp(PortNumber from, const Mad& mad, std::uint16_t dlid = kPermissiveLid) {
    const auto lid = static_cast<std::uint16_t>(shared(from).lid);
    model.transmit(now, from, {.dlid = dlid, .slid = lid == 0 ? kPermissiveLid : lid, .mad = mad});
  }

  /// Sends a request by directed route and takes the response; nothing where none came.
  std::optional<Mad> ask(PortNumber from, const std::vector<std::uint8_t>& route, const Mad& mad) {
    to_software.clear();
    send_smp(from, directed(mad, route));
    advance(Duration(0));
    for (const auto& [port, packet] : to_software) {
      if (port == from && packet.mad[kMethod] == kMethodGetResp) return packet.mad;
    }
    return std::nullopt;
  }

  /// The status of a response without the direction bit.
  static std::uint16_t status(const Mad& mad) { return load16(mad, kStatus) & 0x7FFF; }

  static std::uint32_t field(const Mad& mad, MAD_FIELDS name) {
    return ::mad_get_field(const_cast<std::uint8_t*>(mad.data()), kSmpData, name);
  }

  /// Get(PortInfo), changes it, and Sets it: the response.
  template <class Change>
  std::optional<Mad> set_port_info(PortNumber from, const std::vector<std::uint8_t>& route, Change change,
                                   std::uint64_t mkey = 0) {
    Mad get = smp(kMethodGet, IB_ATTR_PORT_INFO);
    store64(get, kMkey, mkey);
    const std::optional<Mad> present = ask(from, route, get);
    if (!present) return std::nullopt;
    Mad set = smp(kMethodSet, IB_ATTR_PORT_INFO);
    store64(set, kMkey, mkey);
    std::copy_n(present->begin() + kSmpData, IB_SMP_DATA_SIZE, set.begin() + kSmpData);
    ::mad_set_field(set.data(), kSmpData, IB_PORT_STATE_F, IBV_PORT_NOP);
    ::mad_set_field(set.data(), kSmpData, IB_PORT_PHYS_STATE_F, 0);
    change(set);
    return ask(from, route, set);
  }

  std::uint16_t set_field(PortNumber from, const std::vector<std::uint8_t>& route, MAD_FIELDS name,
                          std::uint32_t value) {
    const auto response =
        set_port_info(from, route, [&](Mad& mad) { ::mad_set_field(mad.data(), kSmpData, name, value); });
    return response ? status(*response) : 0xFFFF;
  }

  /// What a subnet manager at h1 port 2 does: LIDs 1 and 2, Armed, Active.
  void bring_up() {
    const PortNumber manager = port(1, 2);
    for (unsigned end = 0; end < 2; ++end) {
      const std::vector<std::uint8_t> route =
          end == 0 ? std::vector<std::uint8_t>{} : std::vector<std::uint8_t>{2};
      const auto configured = set_port_info(manager, route, [&](Mad& mad) {
        ::mad_set_field(mad.data(), kSmpData, IB_PORT_LID_F, end + 1);
        ::mad_set_field(mad.data(), kSmpData, IB_PORT_SMLID_F, 1);
        ::mad_set_field(mad.data(), kSmpData, IB_PORT_SUBN_TIMEOUT_F, 18);
      });
      ASSERT_TRUE(configured);
      ASSERT_EQ(status(*configured), 0);
    }
    for (const std::uint32_t state : {IBV_PORT_ARMED, IBV_PORT_ACTIVE}) {
      ASSERT_EQ(set_field(manager, {}, IB_PORT_STATE_F, state), 0);
      ASSERT_EQ(set_field(manager, {2}, IB_PORT_STATE_F, state), 0);
    }
    to_software.clear();
    events.clear();
  }

  std::unique_ptr<LabMemory> memory;
  std::vector<std::pair<PortNumber, ibv_event_type>> events;
  std::vector<unsigned> removed, inserted;  ///< hosts whose adapter it was
  std::vector<std::pair<PortNumber, Packet>> to_software;
  TimePoint now{};
  Model model;
};

}  // namespace fabric::softhca::testing
