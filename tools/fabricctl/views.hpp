// fabricd's answers for people: JSON to text. Pure functions, one for each object.
#pragma once

#include <boost/json/object.hpp>
#include <string>

namespace fabric::tools {

std::string view_status(const boost::json::object& answer, bool coloured);
std::string view_hosts(const boost::json::object& answer, bool coloured);
std::string view_ports(const boost::json::object& answer, bool coloured);
std::string view_cables(const boost::json::object& answer, bool coloured);
std::string view_routes(const boost::json::object& answer, bool coloured);
std::string view_path(const boost::json::object& answer, bool coloured);
/// Figures that are 0 are left out, unless `all`.
std::string view_gateway(const boost::json::object& answer, bool coloured);
std::string view_counters(const boost::json::object& answer, bool coloured, bool all);
std::string view_doctor(const boost::json::object& answer, bool coloured);
std::string view_log(const boost::json::object& answer, bool coloured);
/// One event, one line.
std::string view_event(const boost::json::object& event, bool coloured);
/// One answer to an echo, one line.
std::string view_echo(const boost::json::object& reply, const std::string& host, std::uint64_t size);
std::string view_hop(const boost::json::object& reply);
std::string view_ping_summary(const boost::json::object& answer);

/// @name Members of an answer; what is missing or null is empty, 0 or false.
/// @{
std::string text_of(const boost::json::object& object, const char* name);
double number_of(const boost::json::object& object, const char* name);
std::uint64_t count_of(const boost::json::object& object, const char* name);
bool flag_of(const boost::json::object& object, const char* name);
const boost::json::object& object_of(const boost::json::object& object, const char* name);
const boost::json::array& array_of(const boost::json::object& object, const char* name);
/// @}

}  // namespace fabric::tools
