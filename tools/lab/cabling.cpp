#include "tools/lab/cabling.hpp"

#include <boost/json.hpp>
#include <queue>
#include <vector>

#include "tools/lab/error.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;

LabDescription chain(unsigned hosts) {
  if (hosts < 1 || hosts > kMaxHosts)
    throw Error("a lab has 1 to " + std::to_string(kMaxHosts) + " hosts, not " + std::to_string(hosts));
  LabDescription lab;
  for (unsigned k = 1; k <= hosts; ++k) lab.hosts.push_back({"h" + std::to_string(k), {2}});
  for (unsigned k = 1; k < hosts; ++k) lab.cables.push_back({{k - 1, 0, 2}, {k, 0, 1}});
  return lab;
}

LabDescription ring(unsigned hosts) {
  LabDescription lab = chain(hosts);
  lab.cables.push_back({{hosts - 1, 0, 2}, {0, 0, 1}});
  return lab;
}

std::string to_json(const LabDescription& lab) {
  json::array hosts, cables;
  for (const LabDescription::Host& host : lab.hosts) {
    json::array hcas;
    for (const unsigned ports : host.hcas) hcas.push_back(json::object{{"ports", ports}});
    hosts.push_back(json::object{{"name", host.name}, {"hcas", std::move(hcas)}});
  }
  for (const auto& [a, b] : lab.cables) cables.push_back(json::array{lab.to_string(a), lab.to_string(b)});
  return json::serialize(json::object{{"hosts", std::move(hosts)}, {"cables", std::move(cables)}});
}

std::optional<unsigned> distance(const LabDescription& lab, unsigned from, unsigned to,
                                 std::optional<unsigned> without_cable,
                                 std::optional<unsigned> without_host) {
  if (from == without_host || to == without_host) return std::nullopt;
  std::vector<std::optional<unsigned>> steps(lab.hosts.size());
  std::queue<unsigned> open;
  steps.at(from) = 0;
  open.push(from);
  while (!open.empty() && !steps.at(to)) {
    const unsigned host = open.front();
    open.pop();
    for (unsigned i = 0; i < lab.cables.size(); ++i) {
      const auto& [a, b] = lab.cables[i];
      if (i == without_cable || (a.host != host && b.host != host)) continue;
      const unsigned next = a.host == host ? b.host : a.host;
      if (next == without_host || steps[next]) continue;
      steps[next] = *steps[host] + 1;
      open.push(next);
    }
  }
  return steps[to];
}

}  // namespace fabric::tools::lab
