#include "routing/messages.hpp"

#include <algorithm>

#include "routing/codec.hpp"
#include "words/text.hpp"

namespace fabric::routing {
namespace {

enum class Type : std::uint8_t { hello = 1, advertisements = 2, lid_table = 3, database_end = 4 };

constexpr std::size_t kFloodedHead = 6, kTableHead = 16, kTableEntry = 10;

template <class... T>
struct Overloaded : T... {
  using T::operator()...;
};
template <class... T>
Overloaded(T...) -> Overloaded<T...>;  // implied in C++20, but not yet in Clang 14

void begin(Writer& writer, Type type) {
  writer.number(kMessageVersion);
  writer.number(static_cast<std::uint8_t>(type));
}

void put(Writer& writer, const Flooded& item) {
  writer.number(item.age);
  writer.number(static_cast<std::uint16_t>(item.advertisement.size()));
  writer.bytes(item.advertisement);
}

}  // namespace

std::vector<std::byte> encode(const Advertisement& advertisement) {
  std::vector<std::byte> out;
  out.reserve(48 + advertisement.name.size() + advertisement.links.size() * 19 +
              advertisement.prefixes.size() * 17 + advertisement.gateway.size());
  Writer writer(out);
  writer.number(advertisement.origin.value());
  writer.number(advertisement.sequence);
  writer.number(advertisement.incarnation);
  writer.number(advertisement.map);
  writer.number(advertisement.priority);
  writer.number(static_cast<std::uint8_t>(advertisement.drained ? 1 : 0));
  writer.number(static_cast<std::uint8_t>(advertisement.claim));
  writer.number(advertisement.index.value());
  writer.number(static_cast<std::uint8_t>(advertisement.name.size()));
  writer.text(advertisement.name);
  writer.number(static_cast<std::uint8_t>(advertisement.links.size()));
  for (const Link& link : advertisement.links) {
    writer.number(link.port.value());
    writer.number(link.neighbour_port.value());
    writer.number(static_cast<std::uint8_t>(link.up ? 1 : 0));
    writer.number(link.neighbour.value());
    writer.number(link.cost);
    writer.number(link.rate);
  }
  writer.number(static_cast<std::uint16_t>(advertisement.prefixes.size()));
  for (const Prefix& prefix : advertisement.prefixes) {
    writer.number(prefix.length);
    writer.bytes(std::as_bytes(std::span(prefix.address)));
  }
  writer.number(static_cast<std::uint8_t>(advertisement.gateway.size()));
  writer.bytes(advertisement.gateway);
  return out;
}

std::optional<AdvertisementKey> decode_key(std::span<const std::byte> in) {
  Reader reader(in);
  AdvertisementKey key;
  key.origin = Guid(reader.number<std::uint64_t>());
  key.sequence = reader.number<std::uint64_t>();
  key.incarnation = reader.number<std::uint32_t>();
  reader.require(key.origin != Guid{});
  reader.require(key.sequence >= 1 && key.sequence <= kMaxSequence);
  if (reader.bad()) return std::nullopt;
  return key;
}

std::optional<Advertisement> decode_advertisement(std::span<const std::byte> in) {
  const auto key = decode_key(in);
  if (!key) return std::nullopt;
  Reader reader(in.subspan(20));
  Advertisement result;
  result.origin = key->origin;
  result.sequence = key->sequence;
  result.incarnation = key->incarnation;
  result.map = reader.number<std::uint64_t>();
  result.priority = reader.number<std::uint8_t>();
  const auto flags = reader.number<std::uint8_t>();
  reader.require(flags <= 1);
  result.drained = flags == 1;
  const auto claim = reader.number<std::uint8_t>();
  reader.require(claim <= static_cast<std::uint8_t>(Claim::held));
  result.claim = static_cast<Claim>(claim);
  result.index = HostIndex(reader.number<std::uint16_t>());
  reader.require(result.index <= kMaxHostIndex);
  reader.require((result.index == kNoHost) == (result.claim == Claim::none));
  const auto name = reader.number<std::uint8_t>();
  reader.require(name <= kMaxName);
  result.name = reader.text(name);
  reader.require(is_printable(result.name));
  const auto links = reader.number<std::uint8_t>();
  reader.require(links <= kMaxLinks);
  for (unsigned i = 0; i < links && !reader.bad(); ++i) {
    Link link;
    link.port = PortIndex(reader.number<std::uint8_t>());
    link.neighbour_port = PortIndex(reader.number<std::uint8_t>());
    const auto up = reader.number<std::uint8_t>();
    link.up = up == 1;
    link.neighbour = Guid(reader.number<std::uint64_t>());
    link.cost = reader.number<std::uint32_t>();
    link.rate = reader.number<std::uint32_t>();
    reader.require(up <= 1 && link.port != kNoPort && link.neighbour_port != kNoPort);
    reader.require(link.neighbour != Guid{} && link.neighbour != result.origin);
    reader.require(link.cost >= 1 && link.cost <= kMaxCost);
    reader.require(result.links.empty() || result.links.back().port < link.port);
    result.links.push_back(link);
  }
  const auto prefixes = reader.number<std::uint16_t>();
  reader.require(prefixes <= kMaxPrefixes);
  for (unsigned i = 0; i < prefixes && !reader.bad(); ++i) {
    Prefix prefix;
    prefix.length = reader.number<std::uint8_t>();
    reader.require(prefix.length <= 128);
    for (auto& byte : prefix.address) byte = reader.number<std::uint8_t>();
    result.prefixes.push_back(prefix);
  }
  const auto gateway = reader.number<std::uint8_t>();
  reader.require(gateway <= kMaxGatewayState);
  const auto state = reader.bytes(gateway);
  result.gateway.assign(state.begin(), state.end());
  if (!reader.done()) return std::nullopt;
  return result;
}

std::vector<std::byte> encode(const Message& message) {
  std::vector<std::byte> out;
  Writer writer(out);
  std::visit(Overloaded{
                 [&](const Hello& hello) {
                   begin(writer, Type::hello);
                   writer.number(hello.host.value());
                   writer.number(hello.incarnation);
                   writer.number(hello.port.value());
                 },
                 [&](const Advertisements& advertisements) {
                   begin(writer, Type::advertisements);
                   for (const Flooded& item : advertisements.items) put(writer, item);
                 },
                 [&](const LidTablePart& part) {
                   begin(writer, Type::lid_table);
                   writer.number(part.version);
                   writer.number(part.total);
                   writer.number(part.first);
                   writer.number(static_cast<std::uint16_t>(part.entries.size()));
                   for (const auto& entry : part.entries) {
                     writer.number(entry.host.value());
                     writer.number(entry.index.value());
                   }
                 },
                 [&](const DatabaseEnd&) { begin(writer, Type::database_end); },
             },
             message);
  return out;
}

std::optional<Message> decode_message(std::span<const std::byte> in) {
  if (in.size() > kMaxMessage) return std::nullopt;
  Reader reader(in);
  reader.require(reader.number<std::uint8_t>() == kMessageVersion);
  const auto type = static_cast<Type>(reader.number<std::uint8_t>());
  if (reader.bad()) return std::nullopt;
  Message result;
  switch (type) {
    case Type::hello: {
      Hello hello;
      hello.host = Guid(reader.number<std::uint64_t>());
      hello.incarnation = reader.number<std::uint32_t>();
      hello.port = PortIndex(reader.number<std::uint8_t>());
      result = hello;
      break;
    }
    case Type::advertisements: {
      Advertisements advertisements;
      while (!reader.bad() && !reader.empty()) {
        Flooded item;
        item.age = reader.number<std::uint32_t>();
        const auto bytes = reader.bytes(reader.number<std::uint16_t>());
        item.advertisement.assign(bytes.begin(), bytes.end());
        advertisements.items.push_back(std::move(item));
      }
      result = std::move(advertisements);
      break;
    }
    case Type::lid_table: {
      LidTablePart part;
      part.version = reader.number<std::uint64_t>();
      part.total = reader.number<std::uint16_t>();
      part.first = reader.number<std::uint16_t>();
      const auto count = reader.number<std::uint16_t>();
      reader.require(part.version >= 1 && part.version <= kMaxSequence);
      reader.require(part.total <= kMaxHostIndex.value() && part.first + count <= part.total);
      for (unsigned i = 0; i < count && !reader.bad(); ++i) {
        const Guid host(reader.number<std::uint64_t>());
        part.entries.push_back({host, HostIndex(reader.number<std::uint16_t>())});
      }
      result = std::move(part);
      break;
    }
    case Type::database_end:
      result = DatabaseEnd{};
      break;
    default:
      return std::nullopt;
  }
  if (!reader.done()) return std::nullopt;
  return result;
}

std::vector<std::vector<std::byte>> encode_all(std::span<const Flooded> items) {
  std::vector<std::vector<std::byte>> messages;
  for (const Flooded& item : items) {
    if (messages.empty() || messages.back().size() + kFloodedHead + item.advertisement.size() > kMaxMessage) {
      Writer writer(messages.emplace_back());
      begin(writer, Type::advertisements);
    }
    Writer writer(messages.back());
    put(writer, item);
  }
  return messages;
}

std::vector<std::vector<std::byte>> encode_all(const LidTable& table) {
  constexpr std::size_t kPerMessage = (kMaxMessage - kTableHead) / kTableEntry;
  std::vector<std::vector<std::byte>> messages;
  std::size_t first = 0;
  do {
    LidTablePart part;
    part.version = table.version;
    part.total = static_cast<std::uint16_t>(table.entries.size());
    part.first = static_cast<std::uint16_t>(first);
    const std::size_t end = std::min(first + kPerMessage, table.entries.size());
    part.entries.assign(table.entries.begin() + static_cast<std::ptrdiff_t>(first),
                        table.entries.begin() + static_cast<std::ptrdiff_t>(end));
    messages.push_back(encode(part));
    first = end;
  } while (first < table.entries.size());
  return messages;
}

bool valid(const LidTable& table) {
  std::vector<bool> taken(kMaxHostIndex.value() + 1u);
  for (std::size_t i = 0; i < table.entries.size(); ++i) {
    const auto [host, index] = table.entries[i];
    if (host == Guid{} || index == kNoHost || index > kMaxHostIndex || taken[index.value()]) return false;
    if (i > 0 && !(table.entries[i - 1].host < host)) return false;
    taken[index.value()] = true;
  }
  return table.version >= 1 && table.version <= kMaxSequence;
}

}  // namespace fabric::routing
