#include "routing/adjacency.hpp"

#include <algorithm>

namespace fabric::routing {

void Adjacency::change(TimePoint now, AdjacencyState state) {
  view_.state = state;
  view_.since = now;
  if (state == AdjacencyState::full) ++view_.times_full;
}

void Adjacency::connect(TimePoint now, const CableUp& cable, std::uint32_t cost) {
  view_.neighbour = cable.neighbour;
  view_.rate = cable.rate;
  view_.cost = cost;
  heard_ = sent_ = now;
  table_ = {};
  change(now, AdjacencyState::init);
}

void Adjacency::disconnect(TimePoint now, const std::string& reason) {
  if (!connected()) return;
  view_.reason = reason;
  change(now, AdjacencyState::down);
}

Adjacency::Effect Adjacency::received(TimePoint now, const Message& message) {
  heard_ = now;
  ++view_.messages_in;
  if (const auto* hello = std::get_if<Hello>(&message)) {
    const bool same = hello->host == view_.neighbour.host &&
                      hello->incarnation == view_.neighbour.incarnation &&
                      hello->port.value() == view_.neighbour.port;
    return same ? Effect::nothing : Effect::nonsense;
  }
  if (std::holds_alternative<DatabaseEnd>(message)) {
    if (view_.state != AdjacencyState::init) return Effect::nonsense;
    change(now, AdjacencyState::full);
    return Effect::full;
  }
  if (const auto* part = std::get_if<LidTablePart>(&message)) return assemble(*part);
  return Effect::nothing;
}

Adjacency::Effect Adjacency::assemble(const LidTablePart& part) {
  if (part.first == 0) {
    table_.version = part.version;
    table_.entries.clear();
  }
  if (part.version != table_.version || part.first != table_.entries.size() ||
      (part.entries.empty() && part.first != part.total))
    return Effect::nonsense;
  table_.entries.insert(table_.entries.end(), part.entries.begin(), part.entries.end());
  if (table_.entries.size() < part.total) return Effect::nothing;
  return valid(table_) ? Effect::lid_table : Effect::nonsense;
}

void Adjacency::sent(TimePoint now) {
  sent_ = now;
  ++view_.messages_out;
}

Adjacency::Due Adjacency::due(TimePoint now) const {
  if (!connected()) return Due::nothing;
  if (now >= heard_ + timers_->dead) return Due::dead;
  return now >= sent_ + timers_->keepalive ? Due::keepalive : Due::nothing;
}

std::optional<TimePoint> Adjacency::next_timer() const {
  if (!connected()) return std::nullopt;
  return std::min(heard_ + timers_->dead, sent_ + timers_->keepalive);
}

void Adjacency::excuse(TimePoint now) {
  heard_ = std::max(heard_, now - timers_->dead + 2 * timers_->keepalive);
}

}  // namespace fabric::routing
