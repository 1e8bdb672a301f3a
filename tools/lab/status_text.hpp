#pragma once

#include <string>
#include <string_view>

namespace fabric::tools::lab {

/// `fabric-lab status` for people, from what `fabric-lab status -j` prints.
std::string status_text(std::string_view json);

}  // namespace fabric::tools::lab
