#include "verbs/softhca/lab_file.hpp"

#include <boost/json.hpp>
#include <charconv>
#include <set>

#include "verbs/softhca/protocol.hpp"

namespace fabric::softhca {
namespace {

namespace json = boost::json;

const json::object& object_at(const json::value& value, const std::string& where) {
  if (!value.is_object()) throw LabError(where + ": an object is expected");
  return value.get_object();
}

const json::array& array_at(const json::object& parent, const char* key, const std::string& where) {
  const json::value* value = parent.if_contains(key);
  if (value == nullptr) throw LabError(where + ": \"" + key + "\" is missing");
  if (!value->is_array()) throw LabError(where + "." + key + ": an array is expected");
  return value->get_array();
}

void only_keys(const json::object& object, std::initializer_list<std::string_view> known,
               const std::string& where) {
  for (const auto& member : object) {
    if (std::find(known.begin(), known.end(), member.key()) == known.end()) {
      throw LabError(where + ": unknown key \"" + std::string(member.key()) + "\"");
    }
  }
}

// Host names go into socket messages, names of folders and namespaces, and NodeDescriptions.
void check_name(const std::string& name, const std::string& where) {
  const bool well_formed =
      !name.empty() && name.size() <= 32 && name[0] != '.' && name[0] != '-' &&
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") ==
          std::string::npos;
  if (!well_formed) throw LabError(where + ": a host name is 1 to 32 of A-Z a-z 0-9 - _ ., not - or . first");
}

unsigned parse_number(std::string_view text, const std::string& where) {
  unsigned number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw LabError(where + ": \"" + std::string(text) + "\" is not a number");
  }
  return number;
}

}  // namespace

unsigned LabDescription::find_host(std::string_view name) const {
  for (unsigned i = 0; i < hosts.size(); ++i) {
    if (hosts[i].name == name) return i;
  }
  throw LabError("there is no host \"" + std::string(name) + "\"");
}

CableEnd LabDescription::parse_end(std::string_view text) const {
  const std::string where = "end \"" + std::string(text) + "\"";
  const auto first = text.find('/');
  if (first == std::string_view::npos) throw LabError(where + ": HOST/PORT or HOST/HCA/PORT is expected");
  CableEnd end{.host = find_host(text.substr(0, first))};
  std::string_view rest = text.substr(first + 1);
  if (const auto second = rest.find('/'); second != std::string_view::npos) {
    end.hca = parse_number(rest.substr(0, second), where);
    rest = rest.substr(second + 1);
  }
  end.port = parse_number(rest, where);
  const Host& host = hosts[end.host];
  if (end.hca >= host.hcas.size()) throw LabError(where + ": the host has no such HCA");
  if (end.port < 1 || end.port > host.hcas[end.hca]) throw LabError(where + ": the HCA has no such port");
  return end;
}

std::string LabDescription::to_string(const CableEnd& end) const {
  return hosts[end.host].name + (end.hca == 0 ? "" : "/" + std::to_string(end.hca)) + "/" +
         std::to_string(end.port);
}

LabDescription parse_lab(std::string_view text) {
  json::stream_parser parser;
  json::error_code error;
  const std::size_t read = parser.write(text.data(), text.size(), error);
  if (!error) parser.finish(error);
  if (error) throw LabError("not JSON at byte " + std::to_string(read) + ": " + error.message());
  const json::value document = parser.release();
  const json::object& root = object_at(document, "lab");
  only_keys(root, {"hosts", "cables"}, "lab");

  LabDescription lab;
  std::set<std::string> names;
  std::size_t ports_of_lab = 0;
  for (const json::value& entry : array_at(root, "hosts", "lab")) {
    const std::string where = "hosts[" + std::to_string(lab.hosts.size()) + "]";
    const json::object& object = object_at(entry, where);
    only_keys(object, {"name", "hcas"}, where);
    const json::value* name = object.if_contains("name");
    if (name == nullptr || !name->is_string()) throw LabError(where + ": \"name\" must be a string");
    LabDescription::Host host{.name = std::string(name->get_string())};
    check_name(host.name, where);
    if (!names.insert(host.name).second) throw LabError(where + ": the name occurs twice");
    for (const json::value& hca : array_at(object, "hcas", where)) {
      const std::string hca_where = where + ".hcas[" + std::to_string(host.hcas.size()) + "]";
      const json::object& hca_object = object_at(hca, hca_where);
      only_keys(hca_object, {"ports"}, hca_where);
      const json::value* ports = hca_object.if_contains("ports");
      if (ports == nullptr || !ports->is_int64() || ports->get_int64() < 1 ||
          ports->get_int64() >= kMaxPortsOfHca) {
        throw LabError(hca_where + ": \"ports\" must be 1 to " + std::to_string(kMaxPortsOfHca - 1));
      }
      host.hcas.push_back(static_cast<unsigned>(ports->get_int64()));
      ports_of_lab += host.hcas.back();
    }
    if (host.hcas.size() > kMaxHcas) {
      throw LabError(where + ": at most " + std::to_string(kMaxHcas) + " HCAs");
    }
    lab.hosts.push_back(std::move(host));
  }
  if (ports_of_lab > kMaxPorts) throw LabError("at most " + std::to_string(kMaxPorts) + " ports in a lab");

  std::set<CableEnd> used;
  for (const json::value& entry : array_at(root, "cables", "lab")) {
    const std::string where = "cables[" + std::to_string(lab.cables.size()) + "]";
    if (!entry.is_array() || entry.get_array().size() != 2 || !entry.get_array()[0].is_string() ||
        !entry.get_array()[1].is_string()) {
      throw LabError(where + ": a pair of strings is expected");
    }
    try {
      const json::array& pair = entry.get_array();
      const CableEnd a = lab.parse_end(std::string_view(pair[0].get_string()));
      const CableEnd b = lab.parse_end(std::string_view(pair[1].get_string()));
      for (const CableEnd& end : {a, b}) {
        if (!used.insert(end).second) throw LabError(lab.to_string(end) + " has a cable already");
      }
      lab.cables.emplace_back(a, b);
    } catch (const LabError& problem) {
      throw LabError(where + ": " + problem.what());
    }
  }
  return lab;
}

}  // namespace fabric::softhca
