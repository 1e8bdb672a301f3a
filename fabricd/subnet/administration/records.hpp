// Records that say what the subnet manager knows of the cable: nodes, ports, links, tables. See records.cpp.
#pragma once

#include "fabricd/subnet/administration/query.hpp"

namespace fabric::daemon::subnet::administration {

/// Records of the query's attribute that equal its template; unsupported_combination for attributes that are
/// not here.
[[nodiscard]] Result tables(const Query& query);

}  // namespace fabric::daemon::subnet::administration
