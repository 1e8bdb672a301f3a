#include "fabricd/control/request.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

namespace fabric::daemon {

namespace json = boost::json;

namespace {

std::string take_word(json::object& request, std::string_view name, std::string otherwise) {
  const auto* value = request.if_contains({name.data(), name.size()});
  if (value == nullptr) return otherwise;
  if (!value->is_string()) throw RequestError(fmt::format("\"{}\" must be a text", name));
  return std::string(value->as_string());
}

std::string line(const json::object& object) {
  return json::serialize(object) + "\n";
}

}  // namespace

Request parse_request(std::string_view text) {
  json::error_code error;
  json::value value = json::parse({text.data(), text.size()}, error);
  if (error) {
    throw RequestError(
        fmt::format("the request is not JSON ({}); write one object a line, for example "
                    "{{\"object\":\"status\",\"verb\":\"show\"}}",
                    error.message()));
  }
  if (!value.is_object()) throw RequestError("the request must be a JSON object");
  json::object& object = value.as_object();
  Request request;
  request.object = take_word(object, "object", "");
  request.verb = take_word(object, "verb", "show");
  if (request.object.empty()) throw RequestError("the request has no \"object\"");
  if (auto* args = object.if_contains("args")) {
    if (!args->is_object()) throw RequestError("\"args\" must be a JSON object");
    request.args = std::move(args->as_object());
  }
  for (const auto& member : object) {
    if (member.key() != "object" && member.key() != "verb" && member.key() != "args") {
      throw RequestError(
          fmt::format("the request has an unknown member \"{}\"", std::string_view(member.key())));
    }
  }
  return request;
}

std::optional<std::string> Request::text(std::string_view name) const {
  const auto* value = args.if_contains({name.data(), name.size()});
  if (value == nullptr || value->is_null()) return std::nullopt;
  if (!value->is_string()) throw RequestError(fmt::format("argument \"{}\" must be a text", name));
  return std::string(value->as_string());
}

std::optional<std::uint64_t> Request::number(std::string_view name, std::uint64_t low,
                                             std::uint64_t high) const {
  const auto* value = args.if_contains({name.data(), name.size()});
  if (value == nullptr || value->is_null()) return std::nullopt;
  json::error_code error;
  const auto number = value->to_number<std::uint64_t>(error);
  if (error || number < low || number > high) {
    throw RequestError(fmt::format("argument \"{}\" must be a whole number from {} to {}", name, low, high));
  }
  return number;
}

bool Request::flag(std::string_view name) const {
  const auto* value = args.if_contains({name.data(), name.size()});
  if (value == nullptr || value->is_null()) return false;
  if (!value->is_bool()) throw RequestError(fmt::format("argument \"{}\" must be true or false", name));
  return value->as_bool();
}

void Request::only(std::initializer_list<std::string_view> names) const {
  for (const auto& member : args) {
    const std::string_view key(member.key().data(), member.key().size());
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      throw RequestError(fmt::format("\"{}\" has no argument \"{}\"", object, key));
    }
  }
}

std::string encode_answer(json::object body, bool more) {
  json::object answer{{"schema", kSchema}};
  if (more) answer["more"] = true;
  for (auto& member : body) answer[member.key()] = std::move(member.value());
  return line(answer);
}

std::string encode_error(std::string_view sentence) {
  return line({{"schema", kSchema}, {"error", json::string_view(sentence.data(), sentence.size())}});
}

}  // namespace fabric::daemon
