// The subnet administrator core: any queries, in any state of the cable, as often as a client likes.
//
// Subjects: fabricd/subnet/subnet_administrator.cpp fabricd/subnet/subnet_manager.cpp verbs/mad.cpp
#include "fabricd/subnet/subnet_administrator.hpp"
#include "tests/fuzz/input.hpp"
#include "tests/unit/subnet_simulation.hpp"

using namespace fabric;
using namespace fabric::daemon::subnet;
using fabric::fuzz::Input;

namespace {

/// A cable as the manager may know it: whole, or with something missing or strange.
View some_view(Input& in) {
  View view;
  view.stage = Stage::settled;
  view.state = SmState::master;
  view.prefix = cable_prefix(Guid{11}, Guid{22});
  for (End* end : {&view.own, &view.peer}) {
    const bool own = end == &view.own;
    Sma sma(Guid{own ? 1U : 2U}, Guid{own ? 11U : 22U}, own ? 1 : 2);
    sma.port.set_lid(Lid{static_cast<std::uint16_t>(own ? 2 : 4)});
    sma.port.set_sm_lid(Lid{2});
    sma.port.set_lmc(1);
    sma.port.set_gid_prefix(view.prefix);
    sma.port.set_state(PortState::active);
    sma.port.set_neighbor_mtu(5);
    auto port = sma.port.bytes();
    in.mutate(port);
    auto node = sma.node.bytes();
    in.mutate(node);
    const unsigned missing = in.byte();
    if ((missing & 7) != 7) end->port = PortInfo(std::span<const std::uint8_t, 64>(port));
    if ((missing >> 3 & 7) != 7) end->node = NodeInfo(std::span<const std::uint8_t, 64>(node));
    if ((missing >> 6 & 1) == 0) end->pkeys = sma.pkeys;
    end->description = in.text(in.below(80));
  }
  return view;
}

Mad some_query(Input& in) {
  static constexpr MadMethod kMethods[] = {MadMethod::get,       MadMethod::set,
                                           MadMethod::get_table, MadMethod::remove,
                                           MadMethod::get_multi, MadMethod::report_response};
  static constexpr std::uint16_t kAttributes[] = {0x01, 0x02, 0x03, 0x11, 0x12, 0x13, 0x14, 0x15,
                                                  0x16, 0x17, 0x18, 0x19, 0x1B, 0x20, 0x30, 0x31,
                                                  0x33, 0x35, 0x36, 0x38, 0x39, 0x3A, 0xF3};
  const unsigned method = in.below(8);
  Mad mad(verbs::MadClass::subnet_administration,
          method < std::size(kMethods) ? kMethods[method] : MadMethod{in.byte()},
          kAttributes[in.below(std::size(kAttributes))], in.byte() & 1);
  auto& bytes = mad.bytes();
  in.fill(std::span(bytes).subspan<48, 8>());  // component mask
  in.fill(std::span(bytes).subspan(56, in.below(128)));
  if (in.below(4) == 3) in.mutate(bytes);
  return mad;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  SubnetAdministrator administrator;
  View view = some_view(in);
  for (int i = 0; i < 200 && !in.empty(); ++i) {
    switch (in.below(16)) {
      case 0:
        administrator.forget();
        break;
      case 1:
        view = some_view(in);
        break;
      default: {
        const Mad query = some_query(in);
        // A client that loses answers asks again.
        for (unsigned times = 1 + in.below(2); times > 0; --times) {
          const auto answer = administrator.handle(view, query);
          if (!answer) continue;
          FUZZ_REQUIRE(answer->bytes.size() >= 56 && answer->bytes.size() <= 65536);
          const MadMethod method{answer->bytes[3]};
          FUZZ_REQUIRE((answer->bytes[3] & verbs::kResponseBit) != 0 || method == MadMethod::trap_repress);
        }
      }
    }
  }
  return 0;
}
