// Ethernet cables: announcements and private data as any bytes, and the core that finds the neighbour,
// against others on the wire that say anything. What must hold: one session at a time, every session ends,
// requests are answered once, and after the nonsense an honest neighbour is connected.
//
// Subjects: fabricd/ethernet/wire.cpp fabricd/ethernet/greeting.cpp
#include <deque>
#include <set>

#include "fabricd/ethernet/greeting.hpp"
#include "fabricd/ethernet/wire.hpp"
#include "tests/fuzz/input.hpp"

using namespace fabric;
using namespace fabric::daemon;
using fabric::fuzz::Input;
using namespace std::chrono_literals;

namespace {

using Purpose = ConnectionParameters::Purpose;

void check_codecs(std::span<const std::byte> bytes) {
  if (const auto announcement = decode_announcement(bytes);
      announcement && announcement->format == kWireFormat) {
    FUZZ_REQUIRE(announcement->identity.name.size() <= kMaxName);
    const auto again = decode_announcement(encode(*announcement));
    FUZZ_REQUIRE(again && again->identity.host == announcement->identity.host &&
                 again->identity.name == announcement->identity.name &&
                 again->service == announcement->service && again->path_mtu == announcement->path_mtu &&
                 again->leaving == announcement->leaving);
  }
  if (const auto parameters = decode_parameters(bytes)) {
    const auto again = decode_parameters(encode(*parameters));
    FUZZ_REQUIRE(again && again->host == parameters->host && again->attempt == parameters->attempt &&
                 again->purpose == parameters->purpose && again->ack_timeout == parameters->ack_timeout);
  }
  if (const auto rejection = decode_rejection(bytes)) {
    FUZZ_REQUIRE(rejection->reason.size() <= kMaxReason);
    const auto again = decode_rejection(encode(*rejection));
    FUZZ_REQUIRE(again && again->reason == rejection->reason && again->version == rejection->version);
  }
}

verbs::Identity identity(std::uint64_t host, std::uint32_t incarnation) {
  return {.host = Guid{host}, .name = "h", .port = 1, .incarnation = incarnation, .version = 1};
}

class Script {
 public:
  explicit Script(Input& in) : in_(in), core_(identity(2, 1)) {}

  void step() {
    switch (in_.below(12)) {
      case 0:
        return give(Greeting::PortUsable{in_.number<std::uint16_t>(),
                                         static_cast<std::uint16_t>(256U << in_.below(5))});
      case 1:
        return give(Greeting::PortUnusable{verbs::CablePhase::down, "event", "gone"});
      case 2:
        return give(Greeting::Lost{"heartbeat", "silent"});
      case 3:
        return pass(std::chrono::milliseconds(in_.number<std::uint16_t>() % 5000));
      case 4:
      case 5: {
        Announcement announcement;
        announcement.leaving = in_.below(8) == 7;
        announcement.identity = identity(1 + in_.below(4), in_.below(3));
        if (in_.below(8) == 7) announcement.identity.version = in_.byte();
        announcement.service = in_.number<std::uint16_t>();
        announcement.path_mtu = in_.number<std::uint16_t>();
        auto bytes = encode(announcement);
        in_.mutate({reinterpret_cast<std::uint8_t*>(bytes.data()), bytes.size()});
        Greeting::Address source{};
        source[15] = in_.byte();
        if (const auto heard = decode_announcement(bytes)) give(Greeting::Heard{source, *heard});
        return;
      }
      case 6:
      case 7: {
        const Greeting::Request request = ++requests_;
        open_.insert(request);
        return give(Greeting::Requested{request, parameters()});
      }
      case 8:
        if (open_.empty()) return;
        return give(Greeting::RequestGone{open_.extract(open_.begin()).value()});
      case 9:  // what belongs to an earlier session may come at any time
        if (!ended_.empty() && in_.flag()) return give(Greeting::Connected{*ended_.rbegin()});
        if (replies_ == 2 || sessions_.empty()) return;
        ++replies_;
        return give(Greeting::Replied{*sessions_.begin(), parameters()});
      case 10:
        if (agreed_ && !up_) give(Greeting::Connected{*sessions_.begin()});
        return;
      case 11:
        if (!sessions_.empty() && !up_) give(Greeting::Failed{*sessions_.begin(), "no"});
        return;
    }
  }

  void recover() {
    give(Greeting::PortUnusable{verbs::CablePhase::down, "event", "gone"});
    FUZZ_REQUIRE(sessions_.empty());
    pass(20s);
    give(Greeting::PortUsable{1234, 4096});
    // The neighbour has the higher GUID, so this end connects; it accepts whatever is asked.
    honest_ = true;
    for (int i = 0; i < 100 && !up_; ++i) {
      Announcement announcement;
      announcement.identity = identity(9, 1);
      announcement.service = 99;
      announcement.path_mtu = 4096;
      give(Greeting::Heard{{}, announcement});
      pass(100ms);
    }
    FUZZ_REQUIRE(up_);
  }

 private:
  ConnectionParameters parameters() {
    ConnectionParameters parameters;
    parameters.purpose = in_.flag() ? Purpose::data : Purpose::control;
    parameters.host = Guid{1 + in_.below(4)};
    parameters.port = 1;
    parameters.incarnation = in_.below(3);
    parameters.version = 1;
    parameters.attempt = in_.below(3);
    parameters.path_mtu = in_.number<std::uint16_t>();
    parameters.ack_timeout = in_.byte();
    auto bytes = encode(parameters);
    in_.mutate({reinterpret_cast<std::uint8_t*>(bytes.data()), bytes.size()});
    return decode_parameters(bytes).value_or(parameters);
  }

  void give(const Greeting::Event& event) {
    waiting_.push_back(event);
    std::size_t events = 0;
    while (!waiting_.empty()) {
      FUZZ_REQUIRE(++events < 100);
      const Greeting::Event next = waiting_.front();
      waiting_.pop_front();
      for (const auto& action : core_.handle(now_, next)) perform(action);
    }
    (void)core_.phase();
    (void)core_.reason();
    (void)core_.neighbour();
  }

  void perform(const Greeting::Action& action) {
    if (const auto* connect = std::get_if<Greeting::Connect>(&action)) {
      begin(connect->session);
      if (!honest_) return;
      for (const Purpose purpose : {Purpose::data, Purpose::control}) {
        ConnectionParameters reply = connect->parameters;
        reply.purpose = purpose;
        reply.host = Guid{9};
        reply.incarnation = 1;
        reply.path_mtu = 4096;
        waiting_.push_back(Greeting::Replied{connect->session, reply});
      }
    } else if (const auto* establish = std::get_if<Greeting::Establish>(&action)) {
      FUZZ_REQUIRE(sessions_.contains(establish->session) && !agreed_);
      agreed_ = true;
      check(establish->terms);
      if (honest_) waiting_.push_back(Greeting::Connected{establish->session});
    } else if (const auto* accept = std::get_if<Greeting::Accept>(&action)) {
      begin(accept->session);
      agreed_ = true;
      FUZZ_REQUIRE(open_.erase(accept->data) == 1 && open_.erase(accept->control) == 1);
      check(accept->terms);
    } else if (const auto* reject = std::get_if<Greeting::Reject>(&action)) {
      FUZZ_REQUIRE(open_.erase(reject->request) == 1);
    } else if (const auto* give_up = std::get_if<Greeting::GiveUp>(&action)) {
      sessions_.erase(give_up->session);  // an unfinished pair of requests is none yet
      ended_.insert(give_up->session);
      up_ = agreed_ = false;
    } else if (std::get_if<Greeting::Up>(&action) != nullptr) {
      FUZZ_REQUIRE(!up_ && agreed_ && sessions_.size() == 1);
      up_ = true;
    }
  }

  void begin(Greeting::Session session) {
    FUZZ_REQUIRE(sessions_.empty() && !ended_.contains(session));
    sessions_.insert(session);
    replies_ = 0;
    agreed_ = false;
  }

  static void check(const Terms& terms) {
    FUZZ_REQUIRE(terms.path_mtu >= 256 && terms.path_mtu <= 4096);
    FUZZ_REQUIRE(terms.ack_timeout <= 31);
  }

  void pass(Duration duration) {
    const TimePoint until = now_ + duration;
    while (core_.next_timer() && *core_.next_timer() <= until) {
      now_ = std::max(now_, *core_.next_timer());
      give(Greeting::TimerExpired{});
      FUZZ_REQUIRE(!core_.next_timer() || *core_.next_timer() > now_);
    }
    now_ = until;
  }

  Input& in_;
  Greeting core_;
  TimePoint now_{};
  std::deque<Greeting::Event> waiting_;
  std::set<Greeting::Session> sessions_;
  Greeting::Request requests_ = 0;
  std::set<Greeting::Session> ended_;
  std::set<Greeting::Request> open_;  ///< neither accepted nor rejected yet
  int replies_ = 0;                   ///< to the present Connect
  bool agreed_ = false;               ///< the present session has been told to connect its queue pairs
  bool up_ = false, honest_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  if (in.flag()) {
    check_codecs(fuzz::as_bytes(in.rest()));
    return 0;
  }
  Script script(in);
  for (int i = 0; i < 300 && !in.empty(); ++i) script.step();
  script.recover();
  return 0;
}
