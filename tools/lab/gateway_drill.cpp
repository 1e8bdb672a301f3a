#include "tools/lab/gateway_drill.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/json.hpp>
#include <cstring>
#include <thread>

#include "tools/fabricctl/client.hpp"
#include "tools/lab/error.hpp"
#include "tools/lab/flow_record.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr auto kPatience = std::chrono::seconds(30);  ///< for anything to recover
constexpr auto kQuiet = milliseconds(1000);           ///< nothing comes for so long: the rest is lost
constexpr std::uint16_t kProbePort = 8110;
constexpr std::size_t kProbeSize = 64;

template <class Condition>
void await(const std::string& what, Condition condition) {
  const auto deadline = steady_clock::now() + kPatience;
  while (!condition()) {
    if (steady_clock::now() > deadline) throw Error(fmt::format("{}: not within {}", what, kPatience));
    std::this_thread::sleep_for(milliseconds(5));
  }
}

Nanoseconds realtime() {
  return std::chrono::duration_cast<Nanoseconds>(std::chrono::system_clock::now().time_since_epoch());
}

/// Numbered datagrams from one namespace to another at an even pace, received with the kernel's time stamps.
class Probes {
 public:
  Probes(const HostNamespace& from, const HostNamespace& to, in_addr address, std::uint16_t port,
         unsigned rate)
      : interval_(Nanoseconds(std::chrono::seconds(1)) / rate) {
    sockaddr_in endpoint{};
    endpoint.sin_family = AF_INET;
    endpoint.sin_port = htons(port);
    to.visit([&] {
      in_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
      const int on = 1, room = 16 << 20;
      setsockopt(in_, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
      setsockopt(in_, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
      if (bind(in_, reinterpret_cast<const sockaddr*>(&endpoint), sizeof endpoint) != 0)
        throw_system_error("bind");
    });
    endpoint.sin_addr = address;
    from.visit([&] {
      out_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
      if (connect(out_, reinterpret_cast<const sockaddr*>(&endpoint), sizeof endpoint) != 0)
        throw_system_error("connect");
    });
    record_.sent.reserve(std::size_t{rate} * 60);
    record_.arrivals.reserve(std::size_t{rate} * 60);
    receiver_ = std::jthread([this](const std::stop_token& stop) { receive(stop); });
    sender_ = std::jthread([this](const std::stop_token& stop) { send(stop); });
  }
  ~Probes() {
    sender_ = {};
    receiver_ = {};
    close(in_);
    close(out_);
  }
  Probes(const Probes&) = delete;
  Probes& operator=(const Probes&) = delete;

  /// Probes with this number and later ones are sent from now on.
  [[nodiscard]] std::uint32_t mark() const { return sent_; }
  [[nodiscard]] bool received_since(std::uint32_t mark) const {
    return highest_ >= static_cast<std::int64_t>(mark);
  }

  void finish() {
    sender_ = {};
    await("the end of the probes",
          [this] { return arrived_ >= sent_ || realtime() - last_arrival_.load() > kQuiet; });
    receiver_ = {};
  }
  /// What became of the probes [first, last); after finish().
  [[nodiscard]] FlowResult result(std::uint32_t first, std::uint32_t last) const {
    FlowRecord part;
    part.sent.assign(record_.sent.begin() + first, record_.sent.begin() + last);
    for (const FlowRecord::Arrival& arrival : record_.arrivals)
      if (arrival.sequence >= first && arrival.sequence < last)
        part.arrivals.push_back({arrival.sequence - first, arrival.at});
    return evaluate(part, interval_);
  }

 private:
  void send(const std::stop_token& stop) {
    prctl(PR_SET_TIMERSLACK, 1000);
    std::array<std::byte, kProbeSize> probe{};
    for (auto next = steady_clock::now(); !stop.stop_requested(); next += interval_) {
      std::this_thread::sleep_until(next);
      const std::uint32_t sequence = sent_;
      std::memcpy(probe.data(), &sequence, sizeof sequence);
      record_.sent.push_back(realtime());
      (void)!::send(out_, probe.data(), probe.size(), 0);  // what the kernel refuses is lost
      sent_ = sequence + 1;
    }
  }

  void receive(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      pollfd ready{in_, POLLIN, 0};
      poll(&ready, 1, 10);
      while (take()) {
      }
    }
  }

  bool take() {
    std::array<std::byte, kProbeSize> probe;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(timespec))> control;
    iovec part{probe.data(), probe.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (recvmsg(in_, &message, 0) < static_cast<ssize_t>(sizeof(std::uint32_t))) return false;
    std::uint32_t sequence = 0;
    std::memcpy(&sequence, probe.data(), sizeof sequence);
    Nanoseconds at = realtime();
    if (const cmsghdr* header = CMSG_FIRSTHDR(&message);
        header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_TIMESTAMPNS) {
      timespec stamp{};
      std::memcpy(&stamp, CMSG_DATA(header), sizeof stamp);
      at = std::chrono::seconds(stamp.tv_sec) + Nanoseconds(stamp.tv_nsec);
    }
    record_.arrivals.push_back({sequence, at});
    highest_ = std::max<std::int64_t>(highest_, sequence);
    ++arrived_;
    last_arrival_ = realtime();
    return true;
  }

  const Nanoseconds interval_;
  int in_ = -1, out_ = -1;
  FlowRecord record_;  ///< `sent` is the sender's, `arrivals` the receiver's; read when both have ended
  std::atomic<std::uint32_t> sent_ = 0, arrived_ = 0;
  std::atomic<std::int64_t> highest_ = -1;
  std::atomic<Nanoseconds> last_arrival_{realtime()};
  std::jthread receiver_, sender_;
};

json::object ask(const Lab& lab, const std::string& host, const std::string& object) {
  return Client(lab.fabricd_socket(host)).ask(object, {}, 10);
}

/// Whether the host serves both families; nothing where it does not say.
bool serves(const Lab& lab, const std::string& host) {
  try {
    const json::object answer = ask(lab, host, "gateway");
    const json::object& upstream = answer.at("upstream").as_object();
    const json::array& routers = answer.at("gateway").at("vrrp-instance").as_array();
    return std::all_of(routers.begin(), routers.end(), [&](const json::value& router) {
      return router.at("state") == "master" &&
             upstream.at(router.at("family").as_string()).at("offered").as_bool();
    });
  } catch (const std::exception&) {  // it is dead, or just starting
    return false;
  }
}

GatewayDrillRun run_once(Lab lab, const std::string& fault, unsigned number,
                         const GatewayDrillOptions& options) {
  const auto& hosts = lab.description().hosts;
  const Lan lan = *lab.lan();
  const std::string master = hosts[0].name, other = hosts[1].name;  // the first has the higher priority
  // The traffic is a guest's of a host that is not next to the LAN, where there is one.
  const auto size = static_cast<unsigned>(hosts.size());
  const std::string guest =
      Lan::guest_of(size > Lan::kGateways ? Lan::kGateways + 1 + number % (size - Lan::kGateways) : 2);
  const auto repair = [&] {
    if (fault == "kill") lab.start(master);
    if (fault == "cut" || fault == "silent") lab.mend(master, Lan::kSwitch);
    if (fault == "handover") ask(lab, other, "gateway handover");
  };
  struct Guard {  // whatever happens, the lab is left whole
    std::function<void()> repair;
    bool needed = false;
    ~Guard() {
      try {
        if (needed) repair();
      } catch (const std::exception&) {  // the first error is the one to tell
      }
    }
  } guard{repair};

  await(master + " serves the gateway", [&] { return serves(lab, master); });
  const HostNamespace inside = lab.namespace_of(guest), outside = lab.namespace_of(Lan::kUpstream);
  Probes from_lan(outside, inside, lan.address_of(guest).v4, kProbePort, options.rate);
  Probes to_lan(inside, outside, lan.address_of(Lan::kUpstream).v4, kProbePort, options.rate);
  const auto flowing = [&](const std::string& when) {
    const auto in = from_lan.mark(), out = to_lan.mark();
    await("traffic from the LAN " + when, [&] { return from_lan.received_since(in); });
    await("traffic to the LAN " + when, [&] { return to_lan.received_since(out); });
  };
  flowing("before the fault");

  guard.needed = true;
  if (fault == "kill") lab.kill(master, true);
  if (fault == "cut") lab.cut(master, Lan::kSwitch, false, false);
  if (fault == "silent") lab.cut(master, Lan::kSwitch, true, false);
  if (fault == "handover") ask(lab, master, "gateway handover");
  await(other + " takes over", [&] { return serves(lab, other); });
  flowing("after the fault");
  const auto in = from_lan.mark(), out = to_lan.mark();
  repair();
  guard.needed = false;
  await(master + " serves again", [&] { return serves(lab, master); });
  flowing("after the repair");
  from_lan.finish();
  to_lan.finish();

  const auto judge = [](const Probes& probes, std::uint32_t repaired) {
    const FlowResult before = probes.result(0, repaired), after = probes.result(repaired, probes.mark());
    const auto ms = [](Nanoseconds gap) { return std::chrono::duration<double, std::milli>(gap).count(); };
    return GatewayDrillRun::Direction{before.sent + after.sent, before.lost, after.lost,
                                      ms(before.longest_gap), ms(after.longest_gap)};
  };
  return {fault, master, judge(from_lan, in), judge(to_lan, out)};
}

struct Totals {
  unsigned runs = 0;
  struct Direction {
    std::uint64_t sent = 0, lost = 0, lost_after_repair = 0;
    std::vector<double> gaps, gaps_after_repair;
    void add(const GatewayDrillRun::Direction& run) {
      sent += run.sent;
      lost += run.lost;
      lost_after_repair += run.lost_after_repair;
      gaps.push_back(run.gap_ms);
      gaps_after_repair.push_back(run.gap_after_repair_ms);
    }
  };
  Direction from_lan, to_lan;
};

/// By fault, in the order in which they came first.
std::vector<std::pair<std::string, Totals>> totals(const std::vector<GatewayDrillRun>& runs) {
  std::vector<std::pair<std::string, Totals>> result;
  for (const GatewayDrillRun& run : runs) {
    auto found = std::find_if(result.begin(), result.end(),
                              [&](const auto& entry) { return entry.first == run.fault; });
    if (found == result.end()) found = result.insert(found, {run.fault, {}});
    ++found->second.runs;
    found->second.from_lan.add(run.from_lan);
    found->second.to_lan.add(run.to_lan);
  }
  return result;
}

json::object gaps_json(const std::vector<double>& gaps) {
  return {{"median", percentile(gaps, 0.5)}, {"p99", percentile(gaps, 0.99)}, {"max", percentile(gaps, 1)}};
}

}  // namespace

GatewayDrillResult drill_gateway(const Lab& lab, const GatewayDrillOptions& options,
                                 const std::function<void(const GatewayDrillRun&)>& progress) {
  if (!lab.lan()) throw Error("this lab has no LAN; 'fabric-lab up --lan' makes one that has");
  GatewayDrillResult result;
  for (unsigned number = 0; number < options.runs; ++number) {
    result.runs.push_back(run_once(lab, options.faults[number % options.faults.size()], number, options));
    progress(result.runs.back());
  }
  return result;
}

std::string GatewayDrillResult::to_json() const {
  json::object faults;
  for (const auto& [fault, total] : totals(runs)) {
    const auto direction = [](const Totals::Direction& of) {
      return json::object{{"sent", of.sent},
                          {"lost", of.lost},
                          {"gap_ms", gaps_json(of.gaps)},
                          {"lost_after_repair", of.lost_after_repair},
                          {"gap_after_repair_ms", gaps_json(of.gaps_after_repair)}};
    };
    faults[fault] = json::object{
        {"runs", total.runs}, {"from_lan", direction(total.from_lan)}, {"to_lan", direction(total.to_lan)}};
  }
  return json::serialize(
      json::object{{"schema", 1}, {"kind", "gateway"}, {"runs", runs.size()}, {"faults", std::move(faults)}});
}

std::string GatewayDrillResult::to_text() const {
  std::string text =
      fmt::format("{:<9} {:>4} {:<9} {:>8} {:>6} {:>8} {:>8} {:>8}   after the repair: lost, longest gap\n",
                  "fault", "runs", "direction", "sent", "lost", "median", "99th", "worst ms");
  for (const auto& [fault, total] : totals(runs))
    for (const auto& [name, of] :
         {std::pair("from LAN", &total.from_lan), std::pair("to LAN", &total.to_lan)})
      text += fmt::format("{:<9} {:>4} {:<9} {:>8} {:>6} {:>8.1f} {:>8.1f} {:>8.1f}   {} {:.1f} ms\n", fault,
                          total.runs, name, of->sent, of->lost, percentile(of->gaps, 0.5),
                          percentile(of->gaps, 0.99), percentile(of->gaps, 1), of->lost_after_repair,
                          percentile(of->gaps_after_repair, 1));
  return text;
}

}  // namespace fabric::tools::lab
