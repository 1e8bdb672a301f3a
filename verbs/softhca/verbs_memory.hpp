// The part of the lab's memory that holds queue pairs, completion queues and memory regions, as far as the
// hardware process has to know it. It lies behind the port table (LabHeader::verbs_offset).
#pragma once

#include <cstddef>
#include <span>

#include "verbs/softhca/lab_memory.hpp"

namespace fabric::softhca {

/// Bytes the hardware process reserves for the area. Pages that nobody touches cost nothing.
[[nodiscard]] std::size_t verbs_area_size();

/// Called once by the hardware process, on zeroed memory, before the first client.
void prepare_verbs_area(LabMemory& lab, std::span<std::byte> area);

/// Called by the hardware process when a client is gone, however it died: what it had in the area is
/// released, and what it was in the middle of is brought to an end for the others.
void reap(LabMemory& lab, std::span<std::byte> area, ClientId client);

}  // namespace fabric::softhca
