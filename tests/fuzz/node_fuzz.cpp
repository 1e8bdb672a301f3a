// The control plane of one host against neighbours that say anything. Its port 0 leads to an honest host,
// whose messages arrive late, changed, twice or not at all; what port 1 says comes from the script alone.
// What must hold: messages are within their size, timers advance, and after the nonsense (the liar is
// unplugged, what it said has been forgotten) the honest host is reached.
#include <deque>
#include <utility>

#include "routing/messages.hpp"
#include "routing/node.hpp"
#include "tests/fuzz/input.hpp"

using namespace fabric;
using namespace fabric::routing;
using fabric::fuzz::Input;
using namespace std::chrono_literals;

namespace {

NodeSettings settings(std::uint64_t guid) {
  NodeSettings settings;
  settings.guid = Guid{guid};
  settings.name = "h" + std::to_string(guid);
  settings.incarnation = 1;
  return settings;
}

struct Host {
  explicit Host(std::uint64_t guid) : node(settings(guid)) {}
  Node node;
  std::deque<std::vector<std::byte>> sent;  ///< over port 0
  std::vector<PortIndex> resets;
};

class Script {
 public:
  explicit Script(Input& in) : in_(in) {
    for (Host& host : hosts_) give(host, TimerExpired{});
    connect();
  }

  void step() {
    Host& host = hosts_[in_.below(2)];
    switch (in_.below(12)) {
      case 0:
      case 1:
      case 2:
        return carry(host, true);
      case 3:
        return carry_all();
      case 4:
        return pass(std::chrono::milliseconds(in_.byte()));
      case 5:
        return pass(std::chrono::seconds(in_.below(16)));
      case 6:
        for (Host& each : hosts_) give(each, CableDown{PortIndex{0}, "cut"});
        return in_.flag() ? connect() : pass(10ms);
      case 7:
        return give(host, DrainChanged{in_.flag()});
      case 8:
        if (in_.flag()) return give(hosts_[0], CableDown{PortIndex{1}, "cut"});
        return give(hosts_[0], CableUp{PortIndex{1},
                                       {Guid{2U + in_.below(3)}, "liar",
                                        static_cast<std::uint8_t>(in_.below(255)), in_.below(3)},
                                       in_.number<std::uint32_t>(),
                                       in_.below(4)});
      case 9: {
        const auto bytes = fuzz::as_bytes(in_.bytes(in_.byte()));
        return give(hosts_[0], MessageReceived{PortIndex{1}, {bytes.begin(), bytes.end()}});
      }
      default:
        return lie();
    }
  }

  void recover() {
    give(hosts_[0], CableDown{PortIndex{1}, "cut"});
    for (Host& host : hosts_) {
      give(host, DrainChanged{false});
      give(host, CableDown{PortIndex{0}, "cut"});
      host.sent.clear();
    }
    connect();
    // Longer than a host stands back from another with its GUID, and a cable that kept failing is not used.
    for (int i = 0; i < 100; ++i) {
      carry_all();
      pass(1s);
      reconnect();
    }
    FUZZ_REQUIRE(reached(hosts_[0], 2) && reached(hosts_[1], 1));
  }

 private:
  static bool reached(const Host& host, std::uint64_t guid) {
    for (const HostView& view : host.node.hosts())
      if (view.guid == Guid{guid}) return view.reachable;
    return false;
  }

  void give(Host& host, const Event& event) {
    for (const Action& action : host.node.handle(now_, event)) {
      if (const auto* send = std::get_if<SendMessage>(&action)) {
        FUZZ_REQUIRE(send->message.size() <= kMaxMessage);
        FUZZ_REQUIRE(decode_message(send->message).has_value());
        if (send->port == PortIndex{0}) host.sent.push_back(send->message);
      } else if (const auto* reset = std::get_if<ResetCable>(&action)) {
        host.resets.push_back(reset->port);
      } else if (const auto* agreed = std::get_if<LidsAgreed>(&action)) {
        FUZZ_REQUIRE(valid(agreed->table));
      } else if (const auto* publish = std::get_if<Publish>(&action)) {
        FUZZ_REQUIRE(publish->state && publish->state == host.node.forwarding());
      }
    }
    FUZZ_REQUIRE(host.sent.size() < 20000);
    // A cable that is reset goes down and comes up again.
    for (const PortIndex port : std::exchange(host.resets, {})) {
      if (port == PortIndex{0}) {
        broken_ = true;
      } else {
        give(host, CableDown{port, "reset"});
      }
    }
    if (in_.below(16) == 0) {
      (void)host.node.view();
      (void)host.node.cables();
      (void)host.node.adjacencies();
      (void)host.node.path(Guid{1}, Guid{in_.below(5)}, in_.below(2));
    }
  }

  void connect() {
    broken_ = false;
    give(hosts_[0], CableUp{PortIndex{0}, {Guid{2}, "h2", 0, 1}, 100'000'000'000, 0});
    give(hosts_[1], CableUp{PortIndex{0}, {Guid{1}, "h1", 0, 1}, 100'000'000'000, 0});
  }

  void reconnect() {
    if (!broken_) return;
    for (Host& host : hosts_) {
      give(host, CableDown{PortIndex{0}, "reset"});
      host.sent.clear();
    }
    connect();
  }

  void carry(Host& from, bool mutate) {
    if (from.sent.empty()) return;
    auto message = from.sent.front();
    from.sent.pop_front();
    if (mutate) {
      in_.mutate({reinterpret_cast<std::uint8_t*>(message.data()), message.size()});
      last_ = message;
      if (in_.below(8) == 0) message.resize(in_.number<std::uint16_t>() % (message.size() + 1));
    }
    give(&from == &hosts_[0] ? hosts_[1] : hosts_[0], MessageReceived{PortIndex{0}, message});
  }

  void carry_all() {
    for (int i = 0; i < 1000; ++i) {
      if (hosts_[0].sent.empty() && hosts_[1].sent.empty()) return;
      for (Host& host : hosts_) carry(host, false);
    }
    FUZZ_REQUIRE(!"the two never come to an end");
  }

  /// A message of the right form with a content of the script's choice, from the liar.
  void lie() {
    Message message;
    switch (in_.below(5)) {
      case 0:
        message = Hello{Guid{in_.below(5)}, in_.below(3), PortIndex{in_.byte()}};
        break;
      case 1:
        message = DatabaseEnd{};
        break;
      case 2: {
        LidTablePart part{.version = in_.number<std::uint16_t>()};
        part.first = static_cast<std::uint16_t>(in_.below(3));
        for (unsigned left = in_.below(5); left > 0; --left)
          part.entries.push_back({Guid{in_.below(8)}, HostIndex{in_.byte()}});
        std::sort(part.entries.begin(), part.entries.end());
        part.total = static_cast<std::uint16_t>(part.first + part.entries.size() + in_.below(2));
        message = part;
        break;
      }
      case 3: {
        if (last_.empty()) return;
        return give(hosts_[0], MessageReceived{PortIndex{1}, last_});
      }
      default: {
        Advertisement advertisement;
        advertisement.origin = Guid{in_.below(6)};
        advertisement.sequence = in_.below(8) == 7 ? in_.number<std::uint64_t>() : in_.byte();
        advertisement.incarnation = in_.below(3);
        advertisement.priority = in_.byte();
        advertisement.drained = in_.flag();
        advertisement.claim = Claim{static_cast<std::uint8_t>(in_.below(4))};
        advertisement.index = HostIndex{in_.byte()};
        advertisement.name = in_.text(in_.below(8));
        for (unsigned left = in_.below(6); left > 0; --left)
          advertisement.links.push_back({PortIndex{static_cast<std::uint8_t>(in_.below(4))},
                                         Guid{in_.below(6)},
                                         PortIndex{static_cast<std::uint8_t>(in_.below(4))}, in_.flag(),
                                         1U + in_.below(4), in_.byte()});
        std::sort(advertisement.links.begin(), advertisement.links.end(),
                  [](const Link& a, const Link& b) { return a.port < b.port; });
        for (unsigned left = in_.below(3); left > 0; --left) {
          Prefix prefix;
          prefix.length = static_cast<std::uint8_t>(8 * in_.below(17));
          in_.fill(std::span(prefix.address).first(prefix.length / 8));
          advertisement.prefixes.push_back(prefix);
        }
        message = Advertisements{{{in_.byte(), encode(advertisement)}}};
      }
    }
    auto bytes = encode(message);
    in_.mutate({reinterpret_cast<std::uint8_t*>(bytes.data()), bytes.size()});
    give(hosts_[0], MessageReceived{PortIndex{1}, bytes});
  }

  void pass(Duration duration) {
    const TimePoint until = now_ + duration;
    for (int i = 0;; ++i) {
      FUZZ_REQUIRE(i < 200000);
      Host* due = nullptr;
      for (Host& host : hosts_) {
        const auto timer = host.node.next_timer();
        if (timer && *timer <= until && (due == nullptr || *timer < *due->node.next_timer())) due = &host;
      }
      if (due == nullptr) break;
      now_ = std::max(now_, *due->node.next_timer());
      give(*due, TimerExpired{});
      FUZZ_REQUIRE(!due->node.next_timer() || *due->node.next_timer() > now_);
      // The honest host hears the keepalives; without input left nothing is lost any more.
      if (in_.empty()) carry_all();
    }
    now_ = until;
  }

  Input& in_;
  Host hosts_[2] = {Host(1), Host(2)};
  TimePoint now_{};
  bool broken_ = false;
  std::vector<std::byte> last_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  Script script(in);
  for (int i = 0; i < 200 && !in.empty(); ++i) script.step();
  script.recover();
  return 0;
}
