// The subnet administrator core: any queries, in any state of the cable, as often as a client likes.
//
// Subjects: fabricd/subnet/subnet_administrator.cpp fabricd/subnet/subnet_manager.cpp verbs/mad.cpp
// Subjects: fabricd/subnet/administration/multicast.cpp fabricd/subnet/administration/paths.cpp
// Subjects: fabricd/subnet/administration/query.cpp fabricd/subnet/administration/records.cpp
// Subjects: fabricd/subnet/administration/services.cpp fabricd/subnet/administration/subscriptions.cpp
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
    if ((missing >> 6 & 1) == 0) end->pkeys[0] = sma.pkeys;
    end->description = in.text(in.below(80));
    if (in.flag()) {
      std::array<std::uint8_t, 64> table{};
      in.fill(table);
      end->guids[0] = verbs::GuidInfo(table);
      end->sl_to_vl = verbs::SlToVlTable(table);
      end->vl_arbitration[in.below(5)] = verbs::SmpAttribute(table);
    }
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

/// A port of the cable, or nobody that is known.
verbs::MadAddress some_source(Input& in) {
  verbs::MadAddress source;
  source.lid = Lid{static_cast<std::uint16_t>(in.below(8))};
  source.qpn = Qpn{in.below(4)};
  return source;
}

class Script {
 public:
  explicit Script(Input& in) : in_(in), view_(some_view(in)) {}

  void step() {
    now_ += std::chrono::milliseconds(in_.number<std::uint16_t>());
    switch (in_.below(16)) {
      case 0:
        view_ = some_view(in_);
        return give(CableChanged{});
      case 1: {
        std::array<std::uint8_t, 64> notice{};
        in_.fill(notice);
        return give(TrapReceived{verbs::NoticeAttribute(notice)});
      }
      case 2:
        return give(ReportTimedOut{in_.flag() ? report_ : in_.number<std::uint32_t>()});
      case 3: {
        Mad confirmed(verbs::MadClass::subnet_administration, MadMethod::report_response, 0x02, 0);
        confirmed.set_tid(report_);
        return give(AdministrationReceived{confirmed, some_source(in_)});
      }
      default: {
        // A client that loses answers asks again.
        const AdministrationReceived query{some_query(in_), some_source(in_)};
        for (unsigned times = 1 + in_.below(2); times > 0; --times) give(query);
      }
    }
  }

 private:
  void give(const AdministratorEvent& event) {
    for (const auto& action : administrator_.handle(now_, view_, event)) {
      if (const auto* report = std::get_if<SendMad>(&action)) {
        report_ = static_cast<std::uint32_t>(report->mad.tid());
        FUZZ_REQUIRE(report->mad.method() == MadMethod::report);
        FUZZ_REQUIRE(report->timeout.count() > 0);
        continue;
      }
      const auto& answer = std::get<Answer>(action);
      const auto* query = std::get_if<AdministrationReceived>(&event);
      FUZZ_REQUIRE(query != nullptr && answer.destination.lid == query->source.lid);
      FUZZ_REQUIRE(answer.bytes.size() >= 56 && answer.bytes.size() <= 65536);
      FUZZ_REQUIRE((answer.bytes[3] & verbs::kResponseBit) != 0 ||
                   MadMethod{answer.bytes[3]} == MadMethod::trap_repress);
    }
  }

  Input& in_;
  View view_;
  SubnetAdministrator administrator_;
  TimePoint now_{};
  std::uint32_t report_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  Script script(in);
  for (int i = 0; i < 200 && !in.empty(); ++i) script.step();
  return 0;
}
