#include "fabricd/control/doctor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <cstring>
#include <memory>
#include <set>

#include "fabricd/addresses.hpp"
#include "fabricd/control/views.hpp"
#include "fabricd/forwarder/buffer_arena.hpp"
#include "fabricd/host.hpp"

namespace fabric::daemon {

namespace json = boost::json;

namespace {

using Level = Finding::Level;

constexpr unsigned kFlaps = 3;  ///< losses in ten minutes that are not chance

std::string_view word_of(Level level) {
  switch (level) {
    case Level::note:
      return "note";
    case Level::warning:
      return "warning";
    case Level::error:
      break;
  }
  return "error";
}

/// Names of hosts, by GUID.
class Names {
 public:
  explicit Names(const std::vector<routing::HostView>& hosts) {
    for (const auto& host : hosts) names_[host.guid] = host.name;
  }
  [[nodiscard]] std::string of(Guid guid) const {
    const auto found = names_.find(guid);
    return found == names_.end() || found->second.empty() ? fabric::to_string(guid) : found->second;
  }
  [[nodiscard]] std::string of(const routing::CableView::End& end) const {
    return fmt::format("{} port {}", of(end.host), end.port.value() + 1);
  }
  [[nodiscard]] std::string of(const routing::CableView& cable) const {
    return fmt::format("{} - {}", of(cable.ends[0]), of(cable.ends[1]));
  }

 private:
  std::map<Guid, std::string> names_;
};

/// The groups of hosts that still reach each other without `host` and `cable`, over live cables.
std::vector<std::vector<Guid>> groups_without(const std::vector<routing::HostView>& hosts,
                                              const std::vector<routing::CableView>& cables, Guid host,
                                              const routing::CableView* cable) {
  std::set<Guid> rest;
  for (const auto& each : hosts) {
    if (each.guid != host && (each.self || each.reachable)) rest.insert(each.guid);
  }
  std::vector<std::vector<Guid>> groups;
  while (!rest.empty()) {
    std::vector<Guid> group{*rest.begin()};
    rest.erase(rest.begin());
    for (std::size_t i = 0; i < group.size(); ++i) {
      for (const auto& each : cables) {
        if (!each.up || &each == cable) continue;
        for (const unsigned end : {0u, 1u}) {
          if (each.ends[end].host == group[i] && rest.erase(each.ends[1 - end].host) != 0) {
            group.push_back(each.ends[1 - end].host);
          }
        }
      }
    }
    groups.push_back(std::move(group));
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const auto& a, const auto& b) { return a.size() > b.size(); });
  return groups;
}

/// "without h2: h1 | h3, h4".
std::string parts(const std::vector<std::vector<Guid>>& groups, const Names& names) {
  std::vector<std::string> texts;
  for (const auto& group : groups) {
    std::vector<std::string> members;
    for (const Guid guid : group) members.push_back(names.of(guid));
    std::sort(members.begin(), members.end());
    texts.push_back(fmt::format("{}", fmt::join(members, ", ")));
  }
  return fmt::format("{}", fmt::join(texts, " | "));
}

class Diagnosis {
 public:
  explicit Diagnosis(const Evidence& evidence) : evidence_(evidence), names_(evidence.hosts) {}

  std::vector<Finding> run() {
    for (const std::string& problem : evidence_.problems) {
      add(Level::error, "problem", problem, "said by fabricd", "see `fabricctl log` for when it began");
    }
    cables();
    map();
    redundancy();
    drops();
    machine();
    std::stable_sort(findings_.begin(), findings_.end(),
                     [](const Finding& a, const Finding& b) { return a.level > b.level; });
    return std::move(findings_);
  }

 private:
  void add(Level level, std::string check, std::string text, std::string evidence, std::string advice) {
    findings_.push_back({level, std::move(check), std::move(text), std::move(evidence), std::move(advice)});
  }

  void cables() {
    for (const Evidence::Cable& cable : evidence_.cables) {
      const std::string port = fmt::format("port {} ({})", cable.port, cable.name);
      if (cable.damped) {
        add(Level::warning, "cable-damped", fmt::format("{} keeps failing and is not used for now", port),
            fmt::format("lost {} times in ten minutes; last by {}: {}", cable.lost_lately,
                        cable.last_detector, cable.last_reason),
            "reseat or replace the cable; it is used again when it has stayed up for a while");
      } else if (cable.lost_lately >= kFlaps) {
        add(Level::warning, "cable-flaps", fmt::format("{} comes and goes", port),
            fmt::format("lost {} times in ten minutes; last by {}: {}", cable.lost_lately,
                        cable.last_detector, cable.last_reason),
            "reseat or replace the cable; look for a neighbour that restarts");
      }
      if (!cable.slow_link.empty()) {
        add(Level::warning, "cable-slow", fmt::format("{} could be faster", port), cable.slow_link,
            "reseat the plugs at both ends, or replace the cable; `ibportstate` shows what is enabled");
      }
      if (cable.connected) continue;
      const std::string since = fmt::format("{} for {:.0f} s: {}", cable.phase, cable.seconds,
                                            cable.reason.empty() ? "no reason known" : cable.reason);
      if (cable.phase == "refused" || cable.phase == "no-device") {
        continue;  // is among the problems
      } else if (cable.phase == "down" && cable.times_up == 0) {
        add(Level::warning, "port-unused", fmt::format("nothing is plugged into {}", port), since,
            "close the ring with a cable, or say that it is meant: `ignore` in [ports]");
      } else if (cable.phase == "down") {
        add(Level::error, "cable-down", fmt::format("the cable of {} is down", port),
            fmt::format("{}; lost by {}: {}", since, cable.last_detector, cable.last_reason),
            "is it plugged in at both ends, and is the neighbour on?");
      } else if (cable.phase == "greeting") {
        add(Level::error, "neighbour-silent", fmt::format("the neighbour at {} does not answer", port), since,
            "the link is up: does fabricd run at the other end (`systemctl status fabricd`)?");
      } else {
        add(Level::error, "cable-not-ready", fmt::format("the cable of {} has not come up", port), since,
            "see `fabricctl -j cable` for how far it got");
      }
    }
  }

  void map() {
    std::map<std::string, unsigned> called;
    for (const auto& host : evidence_.hosts) {
      ++called[host.name];
      if (!host.self && !host.reachable) {
        add(Level::error, "host-unreachable", fmt::format("{} cannot be reached", host.name),
            fmt::format("it was heard of last {:.0f} s ago", std::chrono::duration<double>(host.age).count()),
            "is it on, does fabricd run there, are its cables plugged in?");
      }
      if (host.drained) {
        add(Level::note, "host-drained", fmt::format("{} is drained", host.name), "it says so itself",
            fmt::format("when its maintenance is over: `fabricctl undrain` on {}", host.name));
      }
    }
    for (const auto& [name, count] : called) {
      if (count < 2) continue;
      add(Level::warning, "same-name", fmt::format("{} hosts are called {}", count, name),
          "by GUID they differ", "set [host] name, so that people can tell them apart");
    }
    if (!evidence_.node.settled) {
      add(Level::warning, "not-settled", "not all hosts work with the same map",
          "`fabricctl host` shows which",
          "passes within a second after a change; if not, compare the versions of fabricd");
    }
    if (evidence_.node.disagreements != 0) {
      add(Level::warning, "disagreement", "hosts did not agree on the ways in time",
          fmt::format("{} times since the start; `fabricctl log` names them", evidence_.node.disagreements),
          "compare the versions of fabricd, and look at the load of the hosts named");
    }
    std::uint64_t fastest = 0;
    for (const auto& cable : evidence_.map) fastest = std::max(fastest, cable.up ? cable.rate : 0);
    for (const auto& cable : evidence_.map) {
      const auto& [a, b] = cable.ends;
      if (a.up != b.up && reachable(a.host) && reachable(b.host)) {
        add(Level::error, "cable-one-way",
            fmt::format("{}: one end says up, the other down", names_.of(cable)),
            fmt::format("{} says up", names_.of(a.up ? a : b)),
            "if it stays so for more than a second, a direction of the cable is broken: replace it");
      }
      if (!cable.up) {
        if (a.up == b.up && (a.host != self_guid() && b.host != self_guid())) {
          add(Level::error, "cable-down", fmt::format("{} is down", names_.of(cable)), "both ends say so",
              "is it plugged in at both ends?");
        }
        continue;
      }
      if (cable.rate * 2 <= fastest) {
        add(Level::warning, "cable-slow", fmt::format("{} is slow", names_.of(cable)),
            fmt::format("{:.3g} Gbit/s, where another cable has {:.3g}",
                        static_cast<double>(cable.rate) / 1e9, static_cast<double>(fastest) / 1e9),
            "a link that has come up with fewer lanes or at a lower speed: reseat the cable, then look at "
            "`ibv_devinfo -v` and `fabricctl bw`");
      }
      if (a.cost != b.cost) {
        add(Level::note, "cost-asymmetric",
            fmt::format("{} costs differently by direction", names_.of(cable)),
            fmt::format("{} from {}, {} from {}", a.cost, names_.of(a.host), b.cost, names_.of(b.host)),
            "traffic and its answers may take different ways; set the same `cost` in [ports] at both ends");
      }
    }
  }

  void redundancy() {
    const auto points = single_points_of_failure(evidence_.hosts, evidence_.map);
    if (points.empty()) return;
    add(Level::warning, "single-point-of-failure", "one failure would cut hosts off",
        fmt::format("{}", fmt::join(points, "; ")),
        "mend what is down, or add a cable, so that there are two ways");
  }

  void drops() {
    for (const auto& [name, now] : evidence_.after) {
      if (!name.starts_with("drop_") && name != "undrained" && name != "tun_failures") continue;
      const auto found = evidence_.before.find(name);
      const std::uint64_t before = found == evidence_.before.end() ? 0 : found->second;
      if (now <= before) continue;
      const auto meaning = evidence_.texts.find(name);
      // Duplicates after a failover, and packets for nobody, are as it should be.
      const bool ordinary = name == "drop_duplicate" || name == "drop_multicast" || name == "drop_no_session";
      add(ordinary ? Level::note : Level::warning, "drops", fmt::format("{} is growing", name),
          fmt::format("{:.0f} a second; {} since the start: {}",
                      static_cast<double>(now - before) / evidence_.interval, now,
                      meaning == evidence_.texts.end() ? "" : meaning->second),
          advice_on(name));
    }
  }

  static std::string advice_on(const std::string& name) {
    if (name == "drop_egress_full" || name == "drop_no_buffer")
      return "more is sent than the cables or processors carry: see `fabricctl counters`, and [forwarder] "
             "send_buffers";
    if (name == "drop_unreachable" || name == "drop_no_route")
      return "somebody sends to a host that is not there: see `fabricctl host`";
    if (name == "drop_tun_write")
      return "the receiving kernel does not take the packets: compare kernel versions";
    if (name == "tun_failures") return "the network interface was removed: restart fabricd";
    return "see `fabricctl counters` on this host and its neighbours";
  }

  void machine() {
    if (evidence_.slept_lately != 0) {
      add(Level::warning, "no-processor-time", "this host did not get to run fabricd in time",
          fmt::format("{} times in ten minutes; `fabricctl log` says for how long", evidence_.slept_lately),
          "look for what keeps the processors (fabricd's data thread wants nice -10, CAP_SYS_NICE), and for "
          "suspended virtual machines");
    }
    for (const std::string& overlap : evidence_.overlaps) {
      add(Level::error, "address-overlap", fmt::format("{}, which is in the fabric's network", overlap),
          "`ip address`", "choose another `ipv4` or `ipv6` in [network], the same on all hosts");
    }
    if (evidence_.memory_lock < evidence_.memory_registered) {
      add(Level::warning, "memory-lock", "the limit of locked memory is below what the buffers take",
          fmt::format("RLIMIT_MEMLOCK {} MiB, buffers {} MiB", evidence_.memory_lock >> 20,
                      evidence_.memory_registered >> 20),
          "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`");
    }
    if (!evidence_.offloads.empty() && evidence_.offloads.find("tso4") == std::string::npos) {
      add(Level::note, "no-offloads",
          "the kernel has refused segmentation offloads for the network interface",
          fmt::format("granted: {}", evidence_.offloads),
          "TCP is slower than it could be; use a newer kernel");
    }
  }

  [[nodiscard]] bool reachable(Guid guid) const {
    return std::any_of(evidence_.hosts.begin(), evidence_.hosts.end(),
                       [&](const auto& host) { return host.guid == guid && (host.self || host.reachable); });
  }
  [[nodiscard]] Guid self_guid() const {
    const auto found = std::find_if(evidence_.hosts.begin(), evidence_.hosts.end(),
                                    [](const auto& host) { return host.self; });
    return found == evidence_.hosts.end() ? Guid{} : found->guid;
  }

  const Evidence& evidence_;
  Names names_;
  std::vector<Finding> findings_;
};

bool within(const routing::Prefix& network, const sockaddr& address) {
  std::array<std::uint8_t, 16> bytes{};
  if (address.sa_family == AF_INET) {
    bytes[10] = bytes[11] = 0xFF;
    std::memcpy(bytes.data() + 12, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, 4);
  } else if (address.sa_family == AF_INET6) {
    std::memcpy(bytes.data(), &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, 16);
  } else {
    return false;
  }
  for (unsigned bit = 0; bit < network.length; ++bit) {
    const auto mask = static_cast<std::uint8_t>(0x80 >> bit % 8);
    if (((bytes[bit / 8] ^ network.address[bit / 8]) & mask) != 0) return false;
  }
  return true;
}

std::vector<std::string> find_overlaps(const Configuration& configuration) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, freeifaddrs);
  std::vector<std::string> overlaps;
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || configuration.network.interface == each->ifa_name) continue;
    for (const auto& network : {configuration.network.ipv4, configuration.network.ipv6}) {
      if (within(network, *each->ifa_addr))
        overlaps.push_back(fmt::format("{} has an address in {}", each->ifa_name, to_string(network)));
    }
  }
  return overlaps;
}

}  // namespace

std::vector<std::string> single_points_of_failure(const std::vector<routing::HostView>& hosts,
                                                  const std::vector<routing::CableView>& cables) {
  const Names names(hosts);
  std::vector<std::string> sentences;
  for (const auto& host : hosts) {
    if (!host.critical) continue;
    const auto groups = groups_without(hosts, cables, host.guid, nullptr);
    if (groups.size() > 1) {
      sentences.push_back(fmt::format("without {}: {}", names.of(host.guid), parts(groups, names)));
    }
  }
  for (const auto& cable : cables) {
    if (!cable.bridge || !cable.up) continue;
    sentences.push_back(fmt::format("without {}: {}", names.of(cable),
                                    parts(groups_without(hosts, cables, Guid{}, &cable), names)));
  }
  return sentences;
}

std::vector<Finding> diagnose(const Evidence& evidence) {
  return Diagnosis(evidence).run();
}

Evidence gather(Host& host) {
  Evidence evidence;
  const routing::Node& node = host.node();
  evidence.self = node.settings().name;
  evidence.hosts = node.hosts();
  evidence.map = node.cables();
  evidence.node = node.view();
  evidence.problems = host.problems();
  const auto adjacencies = node.adjacencies();
  const auto now = std::chrono::system_clock::now();
  for (const auto& cable : host.cables()) {
    Evidence::Cable& entry = evidence.cables.emplace_back();
    entry.port = cable.port.value() + 1u;
    entry.name = fmt::format("{}/{}", cable.status.device, cable.status.device_port);
    entry.phase = word_of(cable.status.phase);
    entry.reason = cable.status.reason;
    entry.connected = cable.connected;
    entry.damped = std::any_of(adjacencies.begin(), adjacencies.end(), [&](const auto& adjacency) {
      return adjacency.port == cable.port && adjacency.damped;
    });
    entry.times_up = cable.times_up;
    entry.seconds = std::chrono::duration<double>(now - cable.since).count();
    entry.lost_lately = cable.lost_lately;
    const auto& facts = cable.status.link_layer_facts;
    if (const auto slow = facts.find("slow_link"); slow != facts.end()) entry.slow_link = slow->second;
    entry.last_detector = cable.last_detector;
    entry.last_reason = cable.last_reason;
  }
  const ForwarderCounters counters = host.forwarder().counters();
  for (const auto& figure : counters.host) {
    evidence.after[std::string(figure.name)] = figure.value;
    evidence.texts[std::string(figure.name)] = figure.help;
  }
  evidence.slept_lately = host.slept_lately();
  evidence.overlaps = find_overlaps(host.configuration());
  rlimit limit{};
  // Root may lock as much as it likes.
  if (geteuid() != 0 && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    evidence.memory_lock = limit.rlim_cur;
  evidence.memory_registered = counters.buffers * BufferArena::kSlotSize;
  evidence.offloads = host.forwarder().device_offloads();
  return evidence;
}

json::object to_json(const std::vector<Finding>& findings) {
  json::array list;
  for (const Finding& finding : findings) {
    list.push_back({{"level", std::string(word_of(finding.level))},
                    {"check", finding.check},
                    {"text", finding.text},
                    {"evidence", finding.evidence},
                    {"advice", finding.advice}});
  }
  const bool well = std::all_of(findings.begin(), findings.end(),
                                [](const Finding& finding) { return finding.level == Level::note; });
  return {{"well", well}, {"findings", std::move(list)}};
}

}  // namespace fabric::daemon
