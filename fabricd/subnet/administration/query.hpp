// What the parts of the administrator share: a query, its result, and records as layouts of bit widths.
//
// Every record type is a layout: the widths of its components in the order of the specification's tables,
// which is also the order of the component mask. So a template of any type is compared by one function, and a
// component mask needs no code of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "fabricd/subnet/subnet_manager.hpp"
#include "verbs/mad.hpp"

namespace fabric::daemon::subnet::administration {

using Gid = std::array<std::uint8_t, 16>;
using Record = std::vector<std::uint8_t>;

/// 15.2.5, table of administration attributes.
enum class Attribute : std::uint16_t {
  class_port_info = 0x0001,
  notice = 0x0002,
  inform_info = 0x0003,
  node_record = 0x0011,
  port_info_record = 0x0012,
  sl_to_vl_record = 0x0013,
  switch_info_record = 0x0014,
  linear_forwarding_record = 0x0015,
  random_forwarding_record = 0x0016,
  multicast_forwarding_record = 0x0017,
  sm_info_record = 0x0018,
  link_record = 0x0020,
  guid_info_record = 0x0030,
  service_record = 0x0031,
  pkey_table_record = 0x0033,
  path_record = 0x0035,
  vl_arbitration_record = 0x0036,
  mc_member_record = 0x0038,
  multi_path_record = 0x003A,
  inform_info_record = 0x00F3,
};

/// 15.2.1.1: status codes of this class, and those of all classes that it uses.
enum class Status : std::uint16_t {
  ok = 0,
  method_not_supported = 0x0008,
  unsupported_combination = 0x000C,  ///< of method and attribute
  no_resources = 0x0100,
  invalid_request = 0x0200,
  no_records = 0x0300,
  too_many_records = 0x0400,
  invalid_gid = 0x0500,
  insufficient_components = 0x0600,
};

inline constexpr std::size_t kDataSize = 200;

struct Query {
  const View& view;
  TimePoint now;
  verbs::MadAddress source;
  verbs::MadMethod method;
  Attribute attribute;
  std::uint32_t modifier = 0;
  std::uint64_t mask = 0;  ///< components that the template in `data` is about
  std::array<std::uint8_t, kDataSize> data{};
  bool trusted = false;  ///< knows the SM_Key

  [[nodiscard]] bool has(std::uint64_t components) const { return (mask & components) == components; }
  [[nodiscard]] std::array<const End*, 2> ends() const { return {&view.own, &view.peer}; }
  template <std::size_t width>
  [[nodiscard]] std::uint64_t number_at(std::size_t at) const {
    return verbs::load_big_endian<width>(data, at);
  }
  [[nodiscard]] Lid lid_at(std::size_t at) const { return Lid{static_cast<std::uint16_t>(number_at<2>(at))}; }
  [[nodiscard]] Gid gid_at(std::size_t at) const {
    Gid result{};
    std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(at), result.size(), result.begin());
    return result;
  }
};

struct Result {
  Status status = Status::ok;
  std::vector<Record> records = {};
};

// --- layouts

using Layout = std::span<const std::uint16_t>;

/// Component `number` of a mask.
constexpr std::uint64_t bit(unsigned number) {
  return 1ULL << number;
}

/// Whether `record` equals `wanted` in all components of `mask`. Both are at least as long as the layout.
[[nodiscard]] bool matches(const Record& record, std::span<const std::uint8_t> wanted, Layout layout,
                           std::uint64_t mask);

template <class Bytes>
void put(Record& record, std::size_t at, const Bytes& bytes) {
  std::copy(bytes.begin(), bytes.end(), record.begin() + static_cast<std::ptrdiff_t>(at));
}

// --- names of ports

[[nodiscard]] Gid gid_of(const End& end);
/// With the cable's prefix or the link-local one.
[[nodiscard]] bool is_gid_of(const Gid& wanted, const End& end);
[[nodiscard]] bool is_lid_of(Lid lid, const End& end);
/// nullptr where it is nobody's.
[[nodiscard]] const End* end_of(const View& view, Lid lid);
[[nodiscard]] const End* end_of(const View& view, const Gid& gid);

inline constexpr std::uint16_t kDefaultPkey = 0xFFFF;
/// Of any of the partition's two kinds of members.
constexpr bool is_default_partition(std::uint64_t pkey) {
  return (pkey | 0x8000) == kDefaultPkey;
}

}  // namespace fabric::daemon::subnet::administration
