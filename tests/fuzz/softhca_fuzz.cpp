// The management side of the software HCA: SMA, PMA, traps, and what a host's kernel does with MADs (agents,
// transactions, RMPP), with two programs per host that send any bytes, and packets from the cable that no
// kernel would send.
#include <infiniband/umad.h>
#include <netinet/in.h>

#include <cstring>
#include <memory>

#include "tests/fuzz/input.hpp"
#include "verbs/softhca/kernel_mad.hpp"
#include "verbs/softhca/mad_layout.hpp"

using namespace fabric;
using namespace fabric::softhca;
using fabric::fuzz::Input;

namespace {

constexpr PortNumber kPorts = 4;  // h1/1 h1/2 h2/1 h2/2; the cable joins h1/2 and h2/1

class Lab : public Model::Surroundings, public KernelMad::Users {
 public:
  Lab()
      : memory_(std::make_unique<LabMemory>()),
        model_(description(), *memory_, 1, *this),
        kernel_(model_, *this) {
    for (PortNumber port = 0; port < kPorts; ++port) {
      for (UmadId& user : users_[port]) user = kernel_.open(port);
      // As a subnet manager, as a performance manager, and as an administrator with RMPP.
      (void)kernel_.register_agent(
          users_[port][0], {.qpn = 0, .mgmt_class = 0x81, .class_version = 1, .method_mask = {0x26, 0}});
      (void)kernel_.register_agent(
          users_[port][0],
          {.mgmt_class = 0x03, .class_version = 2, .rmpp_version = 1, .method_mask = {0x100006, 0}});
      (void)kernel_.register_agent(users_[port][1],
                                   {.mgmt_class = 0x03, .class_version = 2, .rmpp_version = 1});
      (void)kernel_.register_agent(users_[port][1], {.qpn = 0, .mgmt_class = 0x81, .class_version = 1});
      (void)kernel_.register_agent(users_[port][1], {.mgmt_class = 0x04, .class_version = 1});
    }
  }

  void port_event(PortNumber, ibv_event_type) override {}
  void adapter_removed(unsigned, unsigned) override {}
  void adapter_inserted(unsigned, unsigned) override {}
  void received(PortNumber port, const Packet& packet) override {
    FUZZ_REQUIRE(++packets_ < 100000);
    kernel_.receive(now_, port, packet);
  }
  void to_user(UmadId, const ib_user_mad& header, std::span<const std::uint8_t> data) override {
    FUZZ_REQUIRE(header.agent_id < UMAD_CA_MAX_AGENTS && header.length == sizeof header + data.size());
    FUZZ_REQUIRE(data.size() <= std::size_t{1} << 22);
    last_.assign(data.begin(), data.end());
  }

  void step(Input& in) {
    packets_ = 0;
    const PortNumber port = in.below(kPorts);
    switch (in.below(8)) {
      case 0:
        return pass(std::chrono::milliseconds(in.number<std::uint16_t>()));
      case 1: {
        const UmadId user = users_[port][in.below(2)];
        if (in.flag()) return (void)kernel_.unregister_agent(user, in.byte());
        AgentRequest request{.qpn = in.below(3),
                             .mgmt_class = in.byte(),
                             .class_version = in.below(4),
                             .rmpp_version = in.below(3),
                             .user_rmpp = in.below(2),
                             .oui = in.byte()};
        request.method_mask[0] = in.number<std::uint64_t>();
        request.method_mask[1] = in.number<std::uint64_t>();
        return (void)kernel_.register_agent(user, request);
      }
      case 2: {  // close and open
        UmadId& user = users_[port][in.below(2)];
        kernel_.close(user);
        user = kernel_.open(port);
        return;
      }
      case 3: {  // what no kernel would send
        Packet packet{.dst_qp = in.below(3),
                      .src_qp = in.below(3),
                      .dlid = in.number<std::uint16_t>(),
                      .slid = in.number<std::uint16_t>(),
                      .sl = in.byte()};
        packet.mad = some_mad(in);
        if (in.flag()) packet.grh.emplace();
        if (in.flag()) return received(port, packet);
        return model_.transmit(now_, port, packet);
      }
      case 4:
        return hardware(in, port);
      default:
        return send(in, port);
    }
  }

  void finish() {
    pass(std::chrono::seconds(120));
    for (PortNumber port = 0; port < kPorts; ++port)
      for (const UmadId user : users_[port]) kernel_.close(user);
    pass(std::chrono::seconds(1));
  }

 private:
  static LabDescription description() {
    LabDescription lab;
    lab.hosts = {{"h1", {2}}, {"h2", {2}}};
    lab.cables = {{{0, 0, 2}, {1, 0, 1}}};
    return lab;
  }

  Mad some_mad(Input& in) {
    Mad mad{};
    mad[kBaseVersion] = 1;
    static constexpr std::uint8_t kClasses[] = {0x01, 0x81, 0x03, 0x04, 0x3A, 0x0A};
    mad[kMgmtClass] = kClasses[in.below(std::size(kClasses))];
    mad[kClassVersion] = mad[kMgmtClass] == 3 ? 2 : 1;
    static constexpr std::uint8_t kMethods[] = {0x01, 0x02, 0x81, 0x05, 0x07, 0x12, 0x92, 0x03};
    mad[kMethod] = kMethods[in.below(std::size(kMethods))];
    if (in.flag() && last_.size() == mad.size()) std::copy(last_.begin(), last_.end(), mad.begin());
    store16(mad, kAttribute, in.byte());
    mad[kModifier + 3] = in.byte();
    if (mad[kMgmtClass] == 0x81) {
      mad[kHopCount] = static_cast<std::uint8_t>(in.below(3));
      mad[kInitialPath + 1] = static_cast<std::uint8_t>(in.below(4));
      store16(mad, kDrSlid, kPermissiveLid);
      store16(mad, kDrDlid, kPermissiveLid);
    } else if (in.flag()) {  // RMPP
      mad[kRmppVersion] = 1;
      mad[kRmppType] = static_cast<std::uint8_t>(in.below(6));
      mad[kRmppFlags] = in.byte();
      store32(mad, kRmppSegment, in.below(8));
      store32(mad, kRmppPayload, in.number<std::uint16_t>());
    }
    if (in.flag()) in.fill(std::span(mad).subspan(64, in.below(129)));
    in.mutate(mad);
    return mad;
  }

  void send(Input& in, PortNumber port) {
    ib_user_mad header{};
    header.agent_id = in.below(6);
    header.timeout_ms = in.flag() ? in.byte() : 0;
    header.retries = in.below(4);
    header.addr.qpn = htonl(in.below(3));
    header.addr.lid = htons(in.flag() ? kPermissiveLid : in.byte());
    const Mad mad = some_mad(in);
    std::vector<std::uint8_t> message(sizeof header);
    message.insert(message.end(), mad.begin(), mad.end());
    // Longer ones are for RMPP, shorter ones for nobody.
    if (in.below(4) == 0) message.resize(in.number<std::uint16_t>() % 8192);
    std::memcpy(message.data(), &header, std::min(sizeof header, message.size()));
    kernel_.send(now_, users_[port][in.below(2)], message);
  }

  void hardware(Input& in, PortNumber port) {
    switch (in.below(8)) {
      case 0:
        return model_.cut(now_, 0, in.flag());
      case 1:
        return model_.mend(now_, 0);
      case 2:
        return model_.set_power(now_, in.below(2), in.flag(), in.flag());
      case 3:
        return model_.flap(now_, port, std::chrono::milliseconds(in.byte()));
      case 4:
        return model_.reset_hca(now_, in.below(2), 0, std::chrono::milliseconds(in.byte()));
      case 5:
        return model_.set_faults(port, {.delay_ns = in.number<std::uint32_t>(),
                                        .loss_ppm = in.byte() * 1000U,
                                        .mad_corrupt_ppm = in.byte() * 1000U});
      case 6:
        return model_.raise_error_counter(now_, port, in.flag() ? 129 : 130);
      case 7:
        return model_.hold_issm(now_, port, 1);
    }
  }

  void pass(Duration time) {
    const TimePoint until = now_ + time;
    for (int i = 0;; ++i) {
      FUZZ_REQUIRE(i < 200000);
      auto next = model_.next_timer();
      if (const auto other = kernel_.next_timer(); other && (!next || *other < *next)) next = other;
      if (!next || *next > until) break;
      now_ = std::max(now_, *next);
      packets_ = 0;
      model_.run(now_);
      kernel_.run(now_);
    }
    now_ = until;
  }

  std::unique_ptr<LabMemory> memory_;
  Model model_;
  KernelMad kernel_;
  TimePoint now_{};
  UmadId users_[kPorts][2]{};
  std::vector<std::uint8_t> last_;
  int packets_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  Lab lab;
  for (int i = 0; i < 200 && !in.empty(); ++i) lab.step(in);
  lab.finish();
  return 0;
}
