// The addresses that a host of the lab has on the fabric: fabricd's defaults for the k-th host.
#pragma once

#include <netinet/in.h>

#include <string>

namespace fabric::tools::lab {

/// An address of each family.
struct AddressPair {
  in_addr v4{};
  in6_addr v6{};
};

/// 10.88.0.0/16 plus `number`, counted from 1.
in_addr address4(unsigned number);
/// The same in fabricd's unique local prefix.
in6_addr address6(unsigned number);
std::string to_string(const in_addr& address);
std::string to_string(const in6_addr& address);

}  // namespace fabric::tools::lab
