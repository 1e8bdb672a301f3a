// The host and the map of the fabric as JSON: pure functions of what Host shows.
//
// A port is numbered from 1 over all ports of its host, in JSON and for people.
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "fabricd/configuration.hpp"
#include "fabricd/control/event_log.hpp"
#include "fabricd/control/request.hpp"
#include "routing/node.hpp"
#include "verbs/cable.hpp"

namespace fabric::daemon {

class Host;

/// The host that people mean by a name, an address, a GUID (0x...) or an index. Throws RequestError where
/// there is none, or several have the name.
routing::HostView find_host(const routing::Node& node, const Configuration& configuration,
                            std::string_view word);

/// @name Answers to `show` of the object of the same name. Throw RequestError.
/// @{
boost::json::object show_hosts(const Host& host, const Request& request);
boost::json::object show_ports(const Host& host, const Request& request);
boost::json::object show_cables(const Host& host, const Request& request);
boost::json::object show_routes(const Host& host, const Request& request);
boost::json::object show_path(const Host& host, const Request& request);
/// The gateway: this host's part in it, the default routes in the ring, and what has happened (from the log).
boost::json::object show_gateway(const Host& host, const EventLog& events);
boost::json::object show_counters(Host& host, const Request& request);
/// What `status` says of a host that runs.
boost::json::object show_status(const Host& host);
/// @}

/// "no-device", "down", "connected", ...
std::string_view word_of(verbs::CablePhase phase);

/// The ways from one host to another, as `path` shows them: {"way","chosen","whole","cost","rate","hops"}.
boost::json::array ways_between(const Host& host, const routing::HostView& from, const routing::HostView& to);

}  // namespace fabric::daemon
