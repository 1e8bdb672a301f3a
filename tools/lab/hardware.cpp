#include "tools/lab/hardware.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <system_error>

#include "tools/lab/error.hpp"
#include "verbs/softhca/control_client.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;

namespace {

constexpr std::chrono::milliseconds kResetTime{100};  ///< until a failed adapter is there again

json::object ask(const std::filesystem::path& socket, const json::object& request) {
  std::string answer;
  try {
    answer = softhca::control(socket, json::serialize(request));
  } catch (const std::system_error& error) {
    throw Error(std::string("the lab's hardware does not answer: ") + error.what());
  }
  json::object result = json::parse(answer).as_object();
  if (!result.at("ok").as_bool()) throw Error(json::value_to<std::string>(result.at("error")));
  return result;
}

/// What is wrong with a cable, in words.
std::string faults_text(const json::object& cable) {
  std::string text;
  const auto add = [&](const std::string& words) { text += (text.empty() ? "" : "; ") + words; };
  for (const json::value& end : cable.at("blocked").as_array())
    add("nothing from " + json::value_to<std::string>(end));
  for (const auto& [end, faults] : cable.at("faults").as_object()) {
    std::string what;
    for (const auto& [name, value] : faults.as_object()) {
      const auto number = json::value_to<std::uint64_t>(value);
      if (!what.empty()) what += ", ";
      if (name == "delay_us") what += fmt::format("delay {} us", number);
      if (name == "rate_mbps") what += fmt::format("rate {} Mb/s", number);
      if (name == "loss_ppm") what += fmt::format("loss {:g}%", static_cast<double>(number) / 1e4);
      if (name == "corrupt_ppm") what += fmt::format("corruption {:g}%", static_cast<double>(number) / 1e4);
      if (name == "mad_corrupt_ppm") what += fmt::format("bad MADs {:g}%", static_cast<double>(number) / 1e4);
    }
    add("from " + std::string(end) + ": " + what);
  }
  return text;
}

}  // namespace

void Hardware::cut(const std::string& a, const std::string& b, bool silent) const {
  ask(socket_, {{"op", "cut"}, {"a", a}, {"b", b}, {"silent", silent}});
}

void Hardware::mend(const std::string& a, const std::string& b) const {
  ask(socket_, {{"op", "mend"}, {"a", a}, {"b", b}});
}

void Hardware::cut_one_way(const std::string& a, const std::string& b) const {
  ask(socket_, {{"op", "block"}, {"a", a}, {"b", b}});
}

void Hardware::flap(const std::string& a, const std::string& b, std::chrono::milliseconds length) const {
  ask(socket_, {{"op", "flap"}, {"a", a}, {"b", b}, {"ms", length.count()}});
}

void Hardware::set_faults(const std::string& a, const std::string& b, const Faults& faults) const {
  json::object request{
      {"op", "faults"},          {"delay_us", faults.delay.count()}, {"rate_mbps", faults.megabits},
      {"loss_ppm", faults.loss}, {"corrupt_ppm", faults.corruption}, {"mad_corrupt_ppm", faults.bad_mads}};
  if (b.empty()) {
    request["end"] = a;
  } else {
    request["a"] = a;
    request["b"] = b;
  }
  ask(socket_, request);
}

void Hardware::change_adapter(const std::string& what, const std::string& host, unsigned adapter) const {
  json::object request{{"op", what}, {"host", host}, {"hca", adapter}};
  if (what == "reset") request["ms"] = kResetTime.count();
  ask(socket_, request);
}

void Hardware::power_off(const std::string& host, bool silent) const {
  ask(socket_, {{"op", "power"}, {"host", host}, {"on", false}, {"silent", silent}});
}

void Hardware::power_on(const std::string& host) const {
  ask(socket_, {{"op", "power"}, {"host", host}, {"on", true}});
}

Hardware::Status Hardware::status() const {
  const json::object answer = ask(socket_, {{"op", "status"}});
  Status status;
  for (const json::value& host : answer.at("hosts").as_array())
    status.power[json::value_to<std::string>(host.at("name"))] = host.at("powered").as_bool();
  for (const json::value& cable : answer.at("cables").as_array())
    status.cables.push_back({json::value_to<std::string>(cable.at("a")),
                             json::value_to<std::string>(cable.at("b")),
                             json::value_to<std::string>(cable.at("state")), faults_text(cable.as_object())});
  return status;
}

}  // namespace fabric::tools::lab
