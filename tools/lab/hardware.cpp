#include "tools/lab/hardware.hpp"

#include <boost/json.hpp>
#include <system_error>

#include "tools/lab/error.hpp"
#include "verbs/softhca/control_client.hpp"

namespace fabric::tools::lab {

namespace json = boost::json;

namespace {

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

}  // namespace

void Hardware::cut(const std::string& a, const std::string& b, bool silent) const {
  ask(socket_, {{"op", "cut"}, {"a", a}, {"b", b}, {"silent", silent}});
}

void Hardware::mend(const std::string& a, const std::string& b) const {
  ask(socket_, {{"op", "mend"}, {"a", a}, {"b", b}});
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
                             json::value_to<std::string>(cable.at("state"))});
  return status;
}

}  // namespace fabric::tools::lab
