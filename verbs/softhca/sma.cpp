#include "verbs/softhca/model.hpp"
namespace fabric::softhca {
bool Model::handle_smp(TimePoint, PortNumber, const Packet&, std::optional<Mad>&) {
  return false;
}
void Model::send_trap(TimePoint, PortNumber, std::uint16_t, const std::array<std::uint8_t, 54>&) {}
void Model::trap_local_change(TimePoint, PortNumber, std::uint8_t) {}
void Model::raise_error_counter(TimePoint, PortNumber, std::uint16_t) {}
bool Model::handle_gmp(PortNumber, const Packet&, std::optional<Mad>&) {
  return false;
}
}  // namespace fabric::softhca
