#include "tools/lab/status_text.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace fabric::tools::lab {

namespace json = boost::json;

std::string status_text(std::string_view text) {
  const json::value status = json::parse(json::string_view(text.data(), text.size()));
  const auto string_of = [](const json::value& value, const char* key) {
    return std::string_view(value.at(key).as_string().data(), value.at(key).as_string().size());
  };
  std::string out =
      fmt::format("lab {} in {}\n\n{:<10} {:<6} {:<9} {:<14} {:<16} {}\n", string_of(status, "lab"),
                  string_of(status, "directory"), "HOST", "POWER", "FABRICD", "IPV4", "IPV6", "NAMESPACE");
  for (const json::value& host : status.at("hosts").as_array()) {
    const json::value& fabricd = host.at("fabricd");
    out += fmt::format("{:<10} {:<6} {:<9} {:<14} {:<16} {}\n", string_of(host, "name"),
                       host.at("power").as_bool() ? "on" : "off",
                       fabricd.is_null() ? "-" : std::to_string(fabricd.to_number<long>()),
                       string_of(host, "ipv4"), string_of(host, "ipv6"), string_of(host, "namespace"));
  }
  out += fmt::format("\n{:<10} {:<10} {}\n", "CABLE", "", "STATE");
  for (const json::value& cable : status.at("cables").as_array())
    out += fmt::format("{:<10} {:<10} {}{}{}\n", string_of(cable, "a"), string_of(cable, "b"),
                       string_of(cable, "state"), string_of(cable, "faults").empty() ? "" : ", ",
                       string_of(cable, "faults"));
  if (const json::value* lan = status.as_object().if_contains("lan")) {
    for (const auto& member : lan->as_object())
      out +=
          fmt::format("{:<10} {:<10} {}\n", std::string_view(member.key().data(), member.key().size()), "lan",
                      std::string_view(member.value().as_string().data(), member.value().as_string().size()));
  }
  if (const json::value* error = status.as_object().if_contains("error"))
    out += fmt::format("\n{}\n", json::value_to<std::string>(*error));
  return out;
}

}  // namespace fabric::tools::lab
