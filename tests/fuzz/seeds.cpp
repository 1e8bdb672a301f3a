// Writes the meaningful seeds of the corpora: what honest programs send, made by this project's own encoders.
//
//   build-fuzz/tests/fuzz_seeds tests/fuzz/corpus
//
// The other files in the corpora are finds: what the fuzzer kept because it reached something new
// (PROGRAM -merge=1).
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "fabricd/ethernet/wire.hpp"
#include "routing/frame.hpp"
#include "routing/messages.hpp"
#include "verbs/handshake.hpp"
#include "verbs/mad.hpp"

using namespace fabric;

namespace {

std::filesystem::path corpus;

void save(const std::string& target, const std::string& name, std::span<const std::byte> bytes,
          const std::string& selector = "") {
  std::filesystem::create_directories(corpus / target);
  std::ofstream file(corpus / target / name, std::ios::binary);
  file << selector;
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void save(const std::string& target, const std::string& name, std::string_view text) {
  save(target, name, std::as_bytes(std::span(text)));
}

void routing_messages() {
  routing::Advertisement advertisement;
  advertisement.origin = Guid{1};
  advertisement.sequence = 7;
  advertisement.incarnation = 3;
  advertisement.priority = 8;
  advertisement.claim = routing::Claim::held;
  advertisement.index = HostIndex{1};
  advertisement.name = "h1";
  advertisement.links = {{PortIndex{0}, Guid{2}, PortIndex{1}, true, 10, 100000},
                         {PortIndex{1}, Guid{3}, PortIndex{0}, false, 10, 100000}};
  advertisement.prefixes.push_back({{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 1, 0, 0}, 112});
  const auto encoded = routing::encode(advertisement);
  save("messages", "advertisement", encoded);
  save("messages", "advertisements",
       routing::encode(routing::Message(routing::Advertisements{{{5, encoded}}})));
  save("messages", "hello", routing::encode(routing::Message(routing::Hello{Guid{1}, 3, PortIndex{1}})));
  save("messages", "end", routing::encode(routing::Message(routing::DatabaseEnd{})));
  save("messages", "table",
       routing::encode(routing::Message(
           routing::LidTablePart{4, 2, 0, {{Guid{1}, HostIndex{1}}, {Guid{2}, HostIndex{2}}}})));
}

void handshake() {
  verbs::handshake::Message message;
  message.identity = {.host = Guid{2}, .name = "h2", .port = 1, .incarnation = 7, .version = 1};
  message.progress = verbs::handshake::Progress::open;
  message.session = {7, 1};
  message.peer_session = {100, 1};
  message.data = {Qpn{17}, 1000};
  message.control = {Qpn{18}, 2000};
  message.mtu = 5;
  std::array<std::uint8_t, verbs::handshake::kMessageSize> bytes{};
  verbs::handshake::encode(message, bytes);
  // A flag, the kind, and where the bytes begin.
  save("handshake", "hello", std::as_bytes(std::span(bytes)), std::string("\1\0\0", 3));
}

void ethernet() {
  const verbs::Identity self{.host = Guid{1}, .name = "h1", .port = 1, .incarnation = 3, .version = 1};
  save("ethernet", "announcement",
       daemon::encode(daemon::Announcement{.identity = self, .service = 99, .path_mtu = 4096}), "\1");
  save("ethernet", "request",
       daemon::encode(daemon::ConnectionParameters{.host = Guid{1},
                                                   .port = 1,
                                                   .incarnation = 3,
                                                   .version = 1,
                                                   .attempt = 1,
                                                   .path_mtu = 4096,
                                                   .ack_timeout = 14}),
       "\1");
  save("ethernet", "rejection", daemon::encode(daemon::Rejection{1, "the port is not ready"}), "\1");
}

void frame() {
  routing::FrameHeader header;
  header.hop_limit = 16;
  header.destination = Lid{4};
  header.source = Lid{2};
  std::array<std::byte, routing::FrameHeader::kSize> bytes{};
  header.encode(bytes);
  save("frame", "header", bytes, std::string(1, '\0'));
  static constexpr std::string_view kIpv4(
      "\x45\x00\x00\x1c\x00\x01\x00\x00\x40\x11\x00\x00\x0a\x58\x00\x01\x0a\x58\x00\x02\x04\xd2\x16\x2e\x00"
      "\x08\x00\x00",
      28);
  static constexpr std::string_view kIpv6(
      "\x60\x00\x00\x00\x00\x08\x11\x40\xfd\x88\x0f\xab\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
      "\xfd\x88\x0f\xab\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x04\xd2\x16\x2e\x00\x08\x00\x00",
      48);
  save("frame", "ipv4_udp", std::as_bytes(std::span(kIpv4)), "\1");
  save("frame", "ipv6_udp", std::as_bytes(std::span(kIpv6)), "\1");
  static constexpr std::string_view kEcho("\3\1\x10\0\0\xff\xff\0\2", 9);
  save("frame", "echo", std::string(kEcho) + std::string(64, '\0'));
}

void datagrams() {
  const auto get = verbs::directed_route_request(verbs::MadMethod::get, verbs::SmAttribute::port_info, 1, 2);
  save("mad", "get_port_info", std::as_bytes(std::span(get.bytes())));
  const verbs::Mad query(verbs::MadClass::subnet_administration, verbs::MadMethod::get_table, 0x35, 0);
  save("mad", "get_table_path_record", std::as_bytes(std::span(query.bytes())));
}

void files() {
  save("configuration", "fabricd.toml",
       "[host]\nname = \"h1\"\npriority = 9\nindex = 3\n[network]\nmtu = 9000\nipv4 = \"10.88.0.0/16\"\n"
       "prefixes = [\"10.1.0.0/16\", \"fd00:1::/64\"]\n[timers]\nheartbeat = \"5ms\"\n[ports]\nuse = "
       "[\"mlx5_0/1\"]\n"
       "[ports.cost]\nmlx5_0 = 10\n[forwarder]\nspin = \"10us\"\n[log]\nlevel = \"debug\"\n");
  save("configuration", "state.json",
       R"({"version":1,"starts":3,"lids":{"version":4,"hosts":[{"host":"0x0000000000000001","index":1}]}})");
  save(
      "configuration", "lab.json",
      R"({"hosts": [{"name": "h1", "hcas": [{"ports": 2}]}, {"name": "h2", "hcas": [{"ports": 2}]}], "cables": [["h1/2", "h2/1"]]})");
  save("configuration", "prefix", "fd88:fab::/64");
  save("control_request", "path", R"({"object":"path","verb":"show","args":{"from":"h1","to":"h3"}})");
  save("control_request", "ping", R"({"object":"ping","args":{"to":"h3","count":5,"size":64,"all":true}})");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  corpus = arguments[1];
  routing_messages();
  handshake();
  ethernet();
  frame();
  datagrams();
  files();
  return 0;
}
