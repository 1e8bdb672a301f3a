#include "tools/lab/gateway_drill.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "tools/fabricctl/client.hpp"
#include "tools/lab/drill_traffic.hpp"
#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;

namespace {

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
  Repair repair([&] {
    if (fault == "kill") lab.start(master);
    if (fault == "cut" || fault == "silent") lab.mend(master, Lan::kSwitch);
    if (fault == "handover") ask(lab, other, "gateway handover");
  });

  await(master + " serves the gateway", [&] { return serves(lab, master); });
  const HostNamespace inside = lab.namespace_of(guest), outside = lab.namespace_of(Lan::kUpstream);
  enum { kFromLan, kToLan };  // the flows
  Probes probes(
      {{outside, inside, lan.address_of(guest).v4}, {inside, outside, lan.address_of(Lan::kUpstream).v4}},
      2 * options.rate);
  const auto flowing = [&](const std::string& when) {
    const Probes::Mark mark = probes.mark();
    await("traffic to and from the LAN " + when, [&] { return probes.received_since(mark); });
  };
  flowing("before the fault");

  repair.owe();
  if (fault == "kill") lab.kill(master, true);
  if (fault == "cut") lab.cut(master, Lan::kSwitch, false, false);
  if (fault == "silent") lab.cut(master, Lan::kSwitch, true, false);
  if (fault == "handover") ask(lab, master, "gateway handover");
  await(other + " takes over", [&] { return serves(lab, other); });
  flowing("after the fault");
  const Probes::Mark repaired = probes.mark();
  repair.pay();
  await(master + " serves again", [&] { return serves(lab, master); });
  flowing("after the repair");
  probes.finish();

  const Probes::Mark end = probes.mark();
  const auto judge = [&](std::size_t flow) {
    const FlowResult before = probes.result(flow, 0, repaired[flow]);
    const FlowResult after = probes.result(flow, repaired[flow], end[flow]);
    const auto ms = [](Nanoseconds gap) { return std::chrono::duration<double, std::milli>(gap).count(); };
    return GatewayDrillRun::Direction{before.sent + after.sent, before.lost, after.lost,
                                      ms(before.longest_gap), ms(after.longest_gap)};
  };
  return {fault, master, judge(kFromLan), judge(kToLan)};
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
