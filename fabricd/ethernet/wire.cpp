#include "fabricd/ethernet/wire.hpp"

#include <algorithm>
#include <string_view>

#include "words/text.hpp"

namespace fabric::daemon {

namespace {

constexpr std::uint32_t kAnnouncementMagic = 0x46414241;  // "FABA"
constexpr std::uint32_t kParametersMagic = 0x46414243;    // "FABC"
constexpr std::uint32_t kRejectionMagic = 0x46414252;     // "FABR"
constexpr std::uint8_t kLeaving = 0x01;

class Writer {
 public:
  template <class T>
  void put(T value) {
    for (int shift = 8 * (sizeof(T) - 1); shift >= 0; shift -= 8)
      bytes_.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> shift));
  }
  /// Length, then the text, cut to `longest`.
  void put(std::string_view text, std::size_t longest) {
    text = text.substr(0, longest);
    put(static_cast<std::uint8_t>(text.size()));
    for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// Beyond the end it reads zeros and remembers.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
  T get() {
    if (bytes_.size() < sizeof(T)) {
      whole_ = false;
      return T{};
    }
    std::uint64_t value = 0;
    for (const std::byte byte : bytes_.first(sizeof(T)))
      value = value << 8 | std::to_integer<std::uint64_t>(byte);
    bytes_ = bytes_.subspan(sizeof(T));
    return static_cast<T>(value);
  }
  std::string text(std::size_t longest) {
    const std::size_t length = get<std::uint8_t>();
    if (length > longest || length > bytes_.size()) {
      whole_ = false;
      return {};
    }
    std::string text;
    for (const std::byte byte : bytes_.first(length)) {
      const char c = std::to_integer<char>(byte);
      text.push_back(is_printable(c) ? c : '?');
    }
    bytes_ = bytes_.subspan(length);
    return text;
  }
  [[nodiscard]] bool whole() const { return whole_; }

 private:
  std::span<const std::byte> bytes_;
  bool whole_ = true;
};

/// An advertisement that named any other as its neighbour would be refused by the whole ring.
bool possible(Guid host, std::uint8_t port) {
  return host != Guid{} && PortIndex(port) != kNoPort;
}

}  // namespace

std::vector<std::byte> encode(const Announcement& announcement) {
  Writer writer;
  writer.put(kAnnouncementMagic);
  writer.put(kWireFormat);
  writer.put(announcement.leaving ? kLeaving : std::uint8_t{0});
  writer.put(announcement.identity.version);
  writer.put(announcement.identity.host.value());
  writer.put(announcement.identity.incarnation);
  writer.put(announcement.service);
  writer.put(announcement.path_mtu);
  writer.put(announcement.identity.port);
  writer.put(announcement.identity.name, kMaxName);
  return writer.take();
}

std::vector<std::byte> encode(const ConnectionParameters& parameters) {
  Writer writer;
  writer.put(kParametersMagic);
  writer.put(kWireFormat);
  writer.put(static_cast<std::uint8_t>(parameters.purpose));
  writer.put(parameters.version);
  writer.put(parameters.host.value());
  writer.put(parameters.incarnation);
  writer.put(parameters.attempt);
  writer.put(parameters.path_mtu);
  writer.put(parameters.port);
  writer.put(parameters.ack_timeout);
  return writer.take();
}

std::vector<std::byte> encode(const Rejection& rejection) {
  Writer writer;
  writer.put(kRejectionMagic);
  writer.put(kWireFormat);
  writer.put(rejection.version);
  writer.put(rejection.reason, kMaxReason);
  return writer.take();
}

std::optional<Announcement> decode_announcement(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  if (reader.get<std::uint32_t>() != kAnnouncementMagic) return std::nullopt;
  Announcement announcement;
  announcement.format = reader.get<std::uint8_t>();
  if (!reader.whole()) return std::nullopt;
  if (announcement.format != kWireFormat) return announcement;
  announcement.leaving = (reader.get<std::uint8_t>() & kLeaving) != 0;
  announcement.identity.version = reader.get<std::uint16_t>();
  announcement.identity.host = Guid{reader.get<std::uint64_t>()};
  announcement.identity.incarnation = reader.get<std::uint32_t>();
  announcement.service = reader.get<std::uint16_t>();
  announcement.path_mtu = reader.get<std::uint16_t>();
  announcement.identity.port = reader.get<std::uint8_t>();
  announcement.identity.name = reader.text(kMaxName);
  if (!reader.whole() || !possible(announcement.identity.host, announcement.identity.port))
    return std::nullopt;
  return announcement;
}

std::optional<ConnectionParameters> decode_parameters(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  if (reader.get<std::uint32_t>() != kParametersMagic || reader.get<std::uint8_t>() != kWireFormat)
    return std::nullopt;
  ConnectionParameters parameters;
  const auto purpose = reader.get<std::uint8_t>();
  if (purpose > static_cast<std::uint8_t>(ConnectionParameters::Purpose::control)) return std::nullopt;
  parameters.purpose = static_cast<ConnectionParameters::Purpose>(purpose);
  parameters.version = reader.get<std::uint16_t>();
  parameters.host = Guid{reader.get<std::uint64_t>()};
  parameters.incarnation = reader.get<std::uint32_t>();
  parameters.attempt = reader.get<std::uint32_t>();
  parameters.path_mtu = reader.get<std::uint16_t>();
  parameters.port = reader.get<std::uint8_t>();
  parameters.ack_timeout = reader.get<std::uint8_t>() & 0x1f;
  if (!reader.whole() || !possible(parameters.host, parameters.port)) return std::nullopt;
  return parameters;
}

std::optional<Rejection> decode_rejection(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  if (reader.get<std::uint32_t>() != kRejectionMagic || reader.get<std::uint8_t>() != kWireFormat)
    return std::nullopt;
  Rejection rejection;
  rejection.version = reader.get<std::uint16_t>();
  rejection.reason = reader.text(kMaxReason);
  if (!reader.whole()) return std::nullopt;
  return rejection;
}

}  // namespace fabric::daemon
