// What the test programs share: how they address a port (by LID over InfiniBand, by GID over Ethernet), and
// which of their checks they run.
#pragma once

#include <infiniband/verbs.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

/// What a port is reached by. Plain bytes: processes tell each other.
struct PortAddress {
  std::uint16_t lid = 0;
  bool ethernet = false;
  ibv_gid gid{};  ///< of index 0: over Ethernet the one of the port's MAC address
};

inline PortAddress address_of(ibv_context* context, std::uint8_t port, const ibv_port_attr& attr) {
  PortAddress address{attr.lid, attr.link_layer == IBV_LINK_LAYER_ETHERNET, {}};
  ibv_query_gid(context, port, 0, &address.gid);
  return address;
}

/// From `port` of this host to there.
inline ibv_ah_attr way_to(const PortAddress& there, std::uint8_t port) {
  ibv_ah_attr attr{};
  attr.port_num = port;
  attr.dlid = there.lid;
  if (there.ethernet) {
    attr.is_global = 1;
    attr.grh.dgid = there.gid;
    attr.grh.hop_limit = 64;
  }
  return attr;
}

/// The name has the text of --only and none of those of --except.
inline bool is_wanted(const std::string& name, const std::string& only,
                      const std::vector<std::string>& except) {
  return name.find(only) != std::string::npos &&
         std::none_of(except.begin(), except.end(),
                      [&](const std::string& text) { return name.find(text) != std::string::npos; });
}
