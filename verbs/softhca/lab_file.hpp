// The description of a lab: which hosts, which HCAs, which cables.
//
//   {"hosts": [{"name": "h1", "hcas": [{"ports": 2}]}, ...], "cables": [["h1/2", "h2/1"], ...]}
//
// An end of a cable is HOST/PORT (of the host's first HCA) or HOST/HCA/PORT. HCAs count from 0, ports from 1.
// Nothing else may stand in the file; what is wrong is said with the place where it is.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fabric::softhca {

struct CableEnd {
  unsigned host = 0;  ///< index into LabDescription::hosts
  unsigned hca = 0;
  unsigned port = 1;
  auto operator<=>(const CableEnd&) const = default;
};

struct LabDescription {
  struct Host {
    std::string name;
    std::vector<unsigned> hcas;  ///< ports of each
  };
  std::vector<Host> hosts;
  std::vector<std::pair<CableEnd, CableEnd>> cables;

  /// "h1/2" or "h1/0/2". Throws LabError.
  [[nodiscard]] CableEnd parse_end(std::string_view text) const;
  /// "h1/2", or "h1/1/2" where the HCA is not the first.
  [[nodiscard]] std::string to_string(const CableEnd& end) const;
  /// Index of a host. Throws LabError.
  [[nodiscard]] unsigned find_host(std::string_view name) const;
};

struct LabError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws LabError with what is wrong and where.
LabDescription parse_lab(std::string_view json);

}  // namespace fabric::softhca
