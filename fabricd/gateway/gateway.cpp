#include "fabricd/gateway/gateway.hpp"

namespace fabric::daemon {

class Gateway::Implementation {};

Gateway::Gateway(boost::asio::io_context&, const Configuration::Gateway&, Guid, Callbacks)
    : implementation_(std::make_unique<Implementation>()) {}
Gateway::~Gateway() = default;
void Gateway::peer_state(Guid, std::span<const std::byte>) {}
void Gateway::peer_reachable(Guid, bool) {}
void Gateway::upstream(bool, const Upstream&) {}
void Gateway::ring_reachable(bool) {}
std::string Gateway::handover() {
  return "not built in yet";
}
bool Gateway::serves(bool) const {
  return false;
}
boost::json::object Gateway::view() const {
  return {};
}

}  // namespace fabric::daemon
