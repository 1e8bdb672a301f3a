#include "routing/node.hpp"

#include <utility>

namespace fabric::routing {

class Node::Implementation {
 public:
  Implementation(NodeSettings settings, std::optional<LidTable> kept)
      : settings(std::move(settings)), table(kept ? std::move(*kept) : LidTable{}) {}

  NodeSettings settings;
  LidTable table;
  std::shared_ptr<const ForwardingState> forwarding = std::make_shared<ForwardingState>();
  bool started = false;
};

Node::Node(NodeSettings settings, std::optional<LidTable> kept)
    : implementation_(std::make_unique<Implementation>(std::move(settings), std::move(kept))) {}
Node::~Node() = default;
Node::Node(Node&&) noexcept = default;
Node& Node::operator=(Node&&) noexcept = default;

std::vector<Action> Node::handle(TimePoint, const Event&) {
  if (std::exchange(implementation_->started, true)) return {};
  return {Publish{implementation_->forwarding}};
}

std::optional<TimePoint> Node::next_timer() const {
  if (implementation_->started) return std::nullopt;
  return TimePoint::min();
}

const NodeSettings& Node::settings() const {
  return implementation_->settings;
}
NodeView Node::view() const {
  return {};
}
std::vector<HostView> Node::hosts() const {
  return {};
}
std::vector<CableView> Node::cables() const {
  return {};
}
std::vector<AdjacencyView> Node::adjacencies() const {
  return {};
}
const LidTable& Node::lid_table() const {
  return implementation_->table;
}
const std::shared_ptr<const ForwardingState>& Node::forwarding() const {
  return implementation_->forwarding;
}
std::vector<Hop> Node::path(Guid, Guid, unsigned) const {
  return {};
}

}  // namespace fabric::routing
