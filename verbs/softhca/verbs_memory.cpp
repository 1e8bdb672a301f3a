#include "verbs/softhca/verbs_memory.hpp"

namespace fabric::softhca {

std::size_t verbs_area_size() {
  return 0;
}

void prepare_verbs_area(LabMemory&, std::span<std::byte>) {}

void reap(LabMemory&, std::span<std::byte>, ClientId) {}

}  // namespace fabric::softhca
