#include "routing/agreement.hpp"

namespace fabric::routing {

void Agreement::propose(std::vector<PortIndex> target, const Ports& live) {
  target_ = std::move(target);
  live_ = live;
  usable_ &= live_;
  installed_.resize(target_.size(), kNoPort);
  for (std::size_t lid = 0; lid < target_.size(); ++lid)
    if (installed_[lid] != target_[lid]) installed_[lid] = kNoPort;
}

void Agreement::settle() {
  installed_ = target_;
  usable_ = live_;
}

std::vector<PortIndex> Agreement::entries() const {
  std::vector<PortIndex> result = installed_;
  for (PortIndex& port : result)
    if (port != kNoPort && !usable_[port.value()]) port = kNoPort;
  return result;
}

}  // namespace fabric::routing
