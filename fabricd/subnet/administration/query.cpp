#include "fabricd/subnet/administration/query.hpp"

namespace fabric::daemon::subnet::administration {

namespace {

constexpr std::uint64_t kLinkLocalPrefix = 0xFE80ULL << 48;

bool equal_bits(std::span<const std::uint8_t> one, std::span<const std::uint8_t> other, std::size_t from,
                std::size_t width) {
  if (from % 8 == 0 && width % 8 == 0)
    return std::equal(one.begin() + static_cast<std::ptrdiff_t>(from / 8),
                      one.begin() + static_cast<std::ptrdiff_t>((from + width) / 8),
                      other.begin() + static_cast<std::ptrdiff_t>(from / 8));
  for (std::size_t i = from; i < from + width; ++i)
    if (((one[i / 8] ^ other[i / 8]) >> (7 - i % 8) & 1) != 0) return false;
  return true;
}

Gid make_gid(std::uint64_t prefix, Guid guid) {
  Gid result{};
  verbs::store_big_endian<8>(result, 0, prefix);
  verbs::store_big_endian<8>(result, 8, guid.value());
  return result;
}

}  // namespace

bool matches(const Record& record, std::span<const std::uint8_t> wanted, Layout layout, std::uint64_t mask) {
  std::size_t from = 0;
  for (std::size_t i = 0; i < layout.size() && mask >> i != 0; from += layout[i++])
    if ((mask & bit(static_cast<unsigned>(i))) != 0 && !equal_bits(record, wanted, from, layout[i]))
      return false;
  return true;
}

Gid gid_of(const End& end) {
  return make_gid(end.port->gid_prefix(), end.node->port_guid());
}

bool is_gid_of(const Gid& wanted, const End& end) {
  return wanted == gid_of(end) || wanted == make_gid(kLinkLocalPrefix, end.node->port_guid());
}

bool is_lid_of(Lid lid, const End& end) {
  return lid.value() >> end.port->lmc() == end.port->lid().value() >> end.port->lmc() && lid != kNoLid;
}

const End* end_of(const View& view, Lid lid) {
  return is_lid_of(lid, view.own) ? &view.own : is_lid_of(lid, view.peer) ? &view.peer : nullptr;
}

const End* end_of(const View& view, const Gid& gid) {
  return is_gid_of(gid, view.own) ? &view.own : is_gid_of(gid, view.peer) ? &view.peer : nullptr;
}

}  // namespace fabric::daemon::subnet::administration
