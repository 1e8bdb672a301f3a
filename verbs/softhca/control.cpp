#include "verbs/softhca/control.hpp"

#include <algorithm>
#include <boost/json.hpp>
#include <cinttypes>

#include "verbs/softhca/mad_layout.hpp"

namespace fabric::softhca {
namespace {

namespace json = boost::json;

std::string hex(std::uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof text, "0x%016" PRIx64, value);
  return text;
}

const char* state_name(std::uint32_t state) {
  switch (state) {
    case IBV_PORT_INIT:
      return "Init";
    case IBV_PORT_ARMED:
      return "Armed";
    case IBV_PORT_ACTIVE:
      return "Active";
    default:
      return "Down";
  }
}

const char* physical_name(PhysState state) {
  switch (state) {
    case PhysState::sleep:
      return "Sleep";
    case PhysState::polling:
      return "Polling";
    case PhysState::disabled:
      return "Disabled";
    case PhysState::link_up:
      return "LinkUp";
  }
  return "";
}

json::object show_counters(const SharedCounters& c) {
  return {{"xmit_data", c.xmit_data.load()},         {"rcv_data", c.rcv_data.load()},
          {"xmit_packets", c.xmit_packets.load()},   {"rcv_packets", c.rcv_packets.load()},
          {"symbol_errors", c.symbol_errors.load()}, {"link_downed", c.link_downed.load()},
          {"rcv_errors", c.rcv_errors.load()},       {"xmit_discards", c.xmit_discards.load()},
          {"xmit_wait", c.xmit_wait.load()}};
}

// One request being executed: the arguments, with complaints that name them.
class Execution {
 public:
  Execution(const json::object& request, Model& model, TimePoint now,
            const std::vector<ConnectedClient>& clients, const std::function<void(unsigned)>& disconnect)
      : request_(request), model_(model), now_(now), clients_(clients), disconnect_(disconnect) {}

  json::object run() {
    const std::string op = text("op");
    if (op == "status") {
      allow({});
      return status();
    }
    if (op == "cut") {
      allow({"a", "b", "silent"});
      model_.cut(now_, cable().number, flag("silent", false));
    } else if (op == "mend") {
      allow({"a", "b"});
      model_.mend(now_, cable().number);
    } else if (op == "block") {
      allow({"from", "a", "b", "on"});
      model_.block(now_, one_end("from"), flag("on", true));
    } else if (op == "plug") {
      allow({"a", "b"});
      model_.plug(now_, port("a"), port("b"));
    } else if (op == "unplug") {
      allow({"end"});
      model_.unplug(now_, port("end"));
    } else if (op == "power") {
      allow({"host", "on", "silent"});
      const unsigned host = model_.lab().find_host(text("host"));
      if (request_.if_contains("on") == nullptr) throw LabError("\"on\" is missing");
      const bool on = flag("on", true);
      model_.set_power(now_, host, on, flag("silent", false));
      if (!on) disconnect_(host);
    } else if (op == "flap") {
      allow({"end", "a", "b", "ms"});
      model_.flap(now_, one_end("end"), std::chrono::milliseconds(number("ms")));
    } else if (op == "reset") {
      allow({"host", "hca", "ms"});
      const auto [host, hca] = adapter();
      model_.reset_hca(now_, host, hca, std::chrono::milliseconds(number("ms")));
    } else if (op == "remove") {
      allow({"host", "hca"});
      const auto [host, hca] = adapter();
      model_.remove_hca(now_, host, hca);
    } else if (op == "insert") {
      allow({"host", "hca"});
      const auto [host, hca] = adapter();
      model_.insert_hca(now_, host, hca);
    } else if (op == "faults") {
      allow({"end", "a", "b", "delay_us", "rate_mbps", "loss_ppm", "corrupt_ppm", "mad_corrupt_ppm"});
      const PortFaults faults{.delay_ns = number("delay_us") * 1000,
                              .rate_limit = number("rate_mbps") * 1'000'000,
                              .loss_ppm = share("loss_ppm"),
                              .corrupt_ppm = share("corrupt_ppm"),
                              .mad_corrupt_ppm = share("mad_corrupt_ppm")};
      model_.set_faults(one_end("end"), faults);
      if (request_.if_contains("a") != nullptr) model_.set_faults(cable().to, faults);
    } else if (op == "trap") {
      allow({"end", "number"});
      const std::uint64_t trap = number("number");
      if (trap != kTrapLinkIntegrity && trap != kTrapBufferOverrun && trap != kTrapWatchdog) {
        throw LabError("\"number\" must be 129, 130 or 131");
      }
      model_.raise_error_counter(now_, port("end"), static_cast<std::uint16_t>(trap));
    } else if (op == "describe") {
      allow({"host", "hca", "text"});
      const auto [host, hca] = adapter();
      model_.describe_node(now_, host, hca, text("text"));
    } else {
      throw LabError("there is no op \"" + op + "\"");
    }
    return {};
  }

 private:
  void allow(std::initializer_list<std::string_view> arguments) const {
    for (const auto& member : request_) {
      if (member.key() != "op" &&
          std::find(arguments.begin(), arguments.end(), member.key()) == arguments.end()) {
        throw LabError("unknown argument \"" + std::string(member.key()) + "\"");
      }
    }
  }

  std::string text(const char* key) const {
    const json::value* value = request_.if_contains(key);
    if (value == nullptr || !value->is_string()) {
      throw LabError("\"" + std::string(key) + "\" must be a string");
    }
    return std::string(value->get_string());
  }

  bool flag(const char* key, bool otherwise) const {
    const json::value* value = request_.if_contains(key);
    if (value == nullptr) return otherwise;
    if (!value->is_bool()) throw LabError("\"" + std::string(key) + "\" must be true or false");
    return value->get_bool();
  }

  std::uint64_t number(const char* key, std::uint64_t largest = 1'000'000'000) const {
    const json::value* value = request_.if_contains(key);
    if (value == nullptr) return 0;
    if (!value->is_int64() || value->get_int64() < 0 ||
        static_cast<std::uint64_t>(value->get_int64()) > largest) {
      throw LabError("\"" + std::string(key) + "\" must be a number from 0 to " + std::to_string(largest));
    }
    return static_cast<std::uint64_t>(value->get_int64());
  }

  std::uint32_t share(const char* key) const { return static_cast<std::uint32_t>(number(key, 1'000'000)); }

  PortNumber port(const char* key) const { return model_.port_at(model_.lab().parse_end(text(key))); }

  std::pair<unsigned, unsigned> adapter() const {
    const unsigned host = model_.lab().find_host(text("host"));
    const std::uint64_t hca = number("hca");
    if (hca >= model_.hosts()[host].hcas.size()) throw LabError("the host has no such HCA");
    return {host, static_cast<unsigned>(hca)};
  }

  std::string end_name(PortNumber number) const { return model_.lab().to_string(model_.port(number).place); }

  // Whether `name` means the port: its END, or its host.
  bool means(const std::string& name, PortNumber number) const {
    const CableEnd& place = model_.port(number).place;
    if (name.find('/') == std::string::npos) return model_.lab().find_host(name) == place.host;
    return model_.lab().parse_end(name) == place;
  }

  struct NamedCable {
    unsigned number;
    PortNumber from, to;  // the ends that a and b mean
  };

  NamedCable cable() const {
    std::string a = text("a"), b = text("b");
    for (int turn = 0; turn < 2; ++turn, std::swap(a, b)) {
      for (unsigned i = 0; i < model_.cables().size(); ++i) {
        const ModelCable& candidate = model_.cables()[i];
        if (!means(a, candidate.a) || !means(b, candidate.b)) continue;
        return turn == 0 ? NamedCable{i, candidate.a, candidate.b} : NamedCable{i, candidate.b, candidate.a};
      }
    }
    throw LabError("there is no cable between " + a + " and " + b);
  }

  // An end by its name, or as that end of the cable between a and b which is a's.
  PortNumber one_end(const char* key) const {
    return request_.if_contains("a") != nullptr && request_.if_contains(key) == nullptr ? cable().from
                                                                                        : port(key);
  }

  static json::object show_faults(const PortFaults& faults) {
    json::object shown;
    if (faults.delay_ns != 0) shown["delay_us"] = faults.delay_ns / 1000;
    if (faults.rate_limit != 0) shown["rate_mbps"] = faults.rate_limit / 1'000'000;
    if (faults.loss_ppm != 0) shown["loss_ppm"] = faults.loss_ppm;
    if (faults.corrupt_ppm != 0) shown["corrupt_ppm"] = faults.corrupt_ppm;
    if (faults.mad_corrupt_ppm != 0) shown["mad_corrupt_ppm"] = faults.mad_corrupt_ppm;
    return shown;
  }

  json::object status() const {
    json::array hosts, cables;
    for (unsigned h = 0; h < model_.hosts().size(); ++h) hosts.push_back(show_host(h));
    for (const ModelCable& cable : model_.cables()) {
      json::array blocked;
      if (cable.blocked_ab) blocked.emplace_back(end_name(cable.a));
      if (cable.blocked_ba) blocked.emplace_back(end_name(cable.b));
      json::object faults;
      for (const PortNumber end : {cable.a, cable.b}) {
        json::object shown = show_faults(model_.port(end).faults);
        if (!shown.empty()) faults[end_name(end)] = std::move(shown);
      }
      const bool up =
          model_.port(cable.a).phys == PhysState::link_up && model_.port(cable.b).phys == PhysState::link_up;
      cables.push_back(json::object{{"a", end_name(cable.a)},
                                    {"b", end_name(cable.b)},
                                    {"state", cable.cut ? cable.silent ? "silent" : "cut"
                                              : up      ? "up"
                                                        : "down"},
                                    {"blocked", blocked},
                                    {"faults", faults}});
    }
    return {{"hosts", hosts}, {"cables", cables}};
  }

  json::object show_host(unsigned index) const {
    const ModelHost& host = model_.hosts()[index];
    json::array clients, hcas;
    for (const ConnectedClient& client : clients_) {
      if (client.host == index) clients.push_back(json::object{{"id", client.id}, {"pid", client.pid}});
    }
    for (unsigned d = 0; d < host.hcas.size(); ++d) {
      json::array ports;
      for (const PortNumber number : host.hcas[d].ports) ports.push_back(show_port(number));
      hcas.push_back(json::object{{"name", "softhca" + std::to_string(d)},
                                  {"present", model_.shared(host.hcas[d].ports.front()).insertion != 0},
                                  {"node_guid", hex(host.hcas[d].node_guid)},
                                  {"description", host.hcas[d].description},
                                  {"ports", ports}});
    }
    return {{"name", host.name}, {"powered", host.powered}, {"clients", clients}, {"hcas", hcas}};
  }

  json::object show_port(PortNumber number) const {
    const ModelPort& port = model_.port(number);
    const SharedPort& shared = model_.shared(number);
    const std::uint32_t peer = shared.peer;
    return {{"end", end_name(number)},
            {"guid", hex(shared.guid)},
            {"state", state_name(shared.state)},
            {"physical", physical_name(port.phys)},
            {"lid", shared.lid.load()},
            {"lmc", shared.lmc.load()},
            {"sm_lid", shared.sm_lid.load()},
            {"prefix", hex(shared.gid_prefix)},
            {"issm", (shared.cap_mask & kIsSm) != 0},
            {"carrier", shared.carrier != 0},
            {"peer", peer == kNoSharedPort ? json::value(nullptr) : json::value(end_name(peer))},
            {"counters", show_counters(shared.counters)}};
  }

  const json::object& request_;
  Model& model_;
  TimePoint now_;
  const std::vector<ConnectedClient>& clients_;
  const std::function<void(unsigned)>& disconnect_;
};

}  // namespace

std::string execute_control(std::string_view line, Model& model, TimePoint now,
                            const std::vector<ConnectedClient>& clients,
                            const std::function<void(unsigned)>& disconnect) {
  json::object answer;
  try {
    const json::value request = json::parse(line);
    if (!request.is_object()) throw LabError("an object is expected");
    answer = Execution(request.get_object(), model, now, clients, disconnect).run();
    answer["ok"] = true;
  } catch (const std::exception& problem) {  // LabError, or Boost.JSON's system_error
    answer = {{"ok", false}, {"error", problem.what()}};
  }
  return json::serialize(answer);
}

}  // namespace fabric::softhca
