// What is at the other end of a cable may be broken or hostile. Sends management datagrams that no honest
// neighbour sends, as fast as the port takes them:
//
//   hostile_neighbour DEVICE PORT KIND SECONDS [SEED]
//
//   malformed    random bytes in every class, method and attribute
//   wrong-class  well-formed datagrams on the queue pair, of the version or with the direction that is wrong
//   oversized    multi-packet messages of up to 64 KB, some of which never end
//   replayed     what the other end sends comes back to it: at once, later, changed, as question and as
//   answer impostor     a second, wandering subnet manager, and a fabricd with ever new incarnations joins
//   ever new multicast groups, services and subscriptions, which the administrator must keep flood
//   well-formed requests, nothing else
//
// Prints how many it has sent. Uses libibumad alone, so it runs on real adapters too.
#include <endian.h>
#include <infiniband/umad.h>
#include <infiniband/umad_types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kSize = 256;
using Datagram = std::array<std::uint8_t, kSize>;
constexpr std::array<std::uint8_t, 3> kFabricdOui{0x02, 0xFA, 0xB0};
constexpr std::uint8_t kHandshakeClass = 0x3A;

void put(Datagram& mad, std::size_t offset, std::uint64_t value, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i)
    mad[offset + i] = static_cast<std::uint8_t>(value >> 8 * (width - 1 - i));
}

class Neighbour {
 public:
  Neighbour(const char* device, int port, std::uint64_t seed) : port_number_(port), random_(seed) {
    if (umad_init() < 0) fail("umad_init");
    port_ = umad_open_port(device, port);
    if (port_ < 0) fail("umad_open_port");
    // Everything that somebody may send without being asked comes here.
    std::array<long, 16 / sizeof(long)> all{};
    all.fill(-1L);
    directed_ = enlist(UMAD_CLASS_SUBN_DIRECTED_ROUTE, 1, 0, all.data());
    routed_ = enlist(UMAD_CLASS_SUBN_LID_ROUTED, 1, 0, all.data());
    administration_ = enlist(UMAD_CLASS_SUBN_ADM, 2, 0, all.data());
    multi_packet_ = umad_register(port_, UMAD_CLASS_SUBN_ADM, 2, 1, nullptr);
    auto oui = kFabricdOui;
    handshake_ = umad_register_oui(port_, kHandshakeClass, 0, oui.data(), all.data());
    umad_port_t attributes{};
    if (umad_get_port(device, port, &attributes) == 0) {
      manager_lid_ = static_cast<std::uint16_t>(attributes.sm_lid);
      umad_release_port(&attributes);
    }
  }
  ~Neighbour() { umad_close_port(port_); }

  std::uint64_t run(const std::string& kind, std::chrono::duration<double> time) {
    const auto end = Clock::now() + time;
    std::uint64_t round = 0;
    while (Clock::now() < end) {
      listen();
      for (int i = 0; i < 64; ++i) send_one(kind, round++);
    }
    return sent_;
  }

 private:
  [[noreturn]] static void fail(const char* what) {
    std::perror(what);
    std::exit(1);
  }
  int enlist(int management_class, int version, int rmpp, long* methods) {
    return umad_register(port_, management_class, version, static_cast<std::uint8_t>(rmpp), methods);
  }
  std::uint64_t number() { return random_(); }
  unsigned below(unsigned count) { return static_cast<unsigned>(random_() % count); }

  static Datagram datagram(std::uint8_t management_class, std::uint8_t method, std::uint16_t attribute,
                           std::uint32_t modifier) {
    Datagram mad{};
    mad[0] = 1;
    mad[1] = management_class;
    mad[2] = management_class == UMAD_CLASS_SUBN_ADM ? 2 : 1;
    mad[3] = method;
    put(mad, 16, attribute, 2);
    put(mad, 20, modifier, 4);
    return mad;
  }
  /// To the other end of the cable.
  void route(Datagram& mad) const {
    mad[6] = 0;
    mad[7] = 1;
    put(mad, 32, 0xFFFFFFFF, 4);
    mad[128 + 1] = static_cast<std::uint8_t>(port_number_);
  }

  void send(int agent, const std::uint8_t* bytes, std::size_t length, std::uint16_t lid, int qpn) {
    std::vector<std::uint8_t> buffer(umad_size() + std::max(length, kSize));
    umad_set_addr(buffer.data(), lid, qpn, 0, qpn == 0 ? 0 : static_cast<int>(UMAD_QKEY));
    std::memcpy(umad_get_mad(buffer.data()), bytes, length);
    if (agent >= 0 && umad_send(port_, agent, buffer.data(), static_cast<int>(length), 0, 0) >= 0) ++sent_;
  }
  void send(const Datagram& mad) {
    const std::uint8_t management_class = mad[1];
    if (management_class == UMAD_CLASS_SUBN_DIRECTED_ROUTE)
      return send(directed_, mad.data(), kSize, 0xFFFF, 0);
    if (management_class == UMAD_CLASS_SUBN_LID_ROUTED)
      return send(routed_, mad.data(), kSize, manager_lid_, 0);
    send(management_class == UMAD_CLASS_SUBN_ADM ? administration_ : handshake_, mad.data(), kSize,
         manager_lid_, 1);
  }

  /// What the other end sends is kept; a small part of it.
  void listen() {
    std::vector<std::uint8_t> buffer(umad_size() + 65536);
    for (int i = 0; i < 64; ++i) {
      int length = 65536;
      if (umad_recv(port_, buffer.data(), &length, 0) < 0) return;
      if (length < static_cast<int>(kSize)) continue;
      Datagram& mad = heard_.emplace_back();
      std::memcpy(mad.data(), umad_get_mad(buffer.data()), kSize);
      if (heard_.size() > 256) heard_.pop_front();
    }
  }

  void send_one(const std::string& kind, std::uint64_t round) {
    if (kind == "malformed") return malformed();
    if (kind == "wrong-class") return wrong_class(round);
    if (kind == "oversized") return oversized();
    if (kind == "replayed") return replay();
    if (kind == "impostor") return round % 2 == 0 ? second_manager() : second_daemon(round);
    if (kind == "joins") return join(round);
    if (kind == "flood") return flood(round);
    std::fprintf(stderr, "no such kind: %s\n", kind.c_str());
    std::exit(2);
  }

  void malformed() {
    static constexpr std::uint8_t kClasses[] = {0x01, 0x81, 0x03, kHandshakeClass};
    Datagram mad;
    for (auto& byte : mad) byte = static_cast<std::uint8_t>(number());
    if (below(8) != 0) mad[0] = 1;
    mad[1] = kClasses[below(4)];
    if (below(4) != 0) mad[2] = mad[1] == 0x03 ? 2 : 1;
    if (below(2) != 0) {
      put(mad, 16, 0x10 + below(0x30), 2);
      mad[3] = static_cast<std::uint8_t>(below(8));
    }
    if (mad[1] == 0x81 && below(4) != 0) route(mad);
    if (mad[1] == kHandshakeClass && below(2) != 0) {
      std::copy(kFabricdOui.begin(), kFabricdOui.end(), mad.begin() + 37);
      mad[3] = 3;
      std::memcpy(mad.data() + 40, "FBRC", 4);
    }
    send(mad);
  }

  void wrong_class(std::uint64_t round) {
    Datagram mad = datagram(static_cast<std::uint8_t>(round), static_cast<std::uint8_t>(1 + below(3)),
                            static_cast<std::uint16_t>(0x11 + below(16)), 1);
    mad[2] = static_cast<std::uint8_t>(below(4));
    if (below(2) != 0) mad[3] |= 0x80;
    route(mad);
    // Subnet management to queue pair 1, administration to queue pair 0, everything with every agent.
    const int agents[] = {directed_, routed_, administration_, handshake_};
    send(agents[below(4)], mad.data(), kSize, below(2) != 0 ? 0xFFFF : manager_lid_,
         static_cast<int>(below(2)));
  }

  void oversized() {
    std::vector<std::uint8_t> message(256 + below(65536));
    Datagram head =
        datagram(UMAD_CLASS_SUBN_ADM, static_cast<std::uint8_t>(below(2) != 0 ? 0x14 : 0x12), 0x3A, 0);
    put(head, 8, number(), 8);
    head[24] = 1;  // RMPP
    head[25] = static_cast<std::uint8_t>(1 + below(4));
    head[26] = static_cast<std::uint8_t>(below(8));  // active, first, last
    put(head, 28, below(4) == 0 ? number() : 1 + below(3), 4);
    put(head, 32, below(4) == 0 ? number() : message.size(), 4);
    std::memcpy(message.data(), head.data(), kSize);
    if (below(2) != 0) return send(administration_, head.data(), kSize, manager_lid_, 1);  // a part of one
    send(multi_packet_, message.data(), message.size(), manager_lid_, 1);
  }

  void replay() {
    if (heard_.empty()) return second_manager();  // so that there is something to hear
    Datagram mad = heard_[below(static_cast<unsigned>(heard_.size()))];
    switch (below(4)) {
      case 0:
        break;
      case 1:
        mad[3] ^= 0x80;
        break;
      case 2:
        mad[below(kSize)] = static_cast<std::uint8_t>(number());
        break;
      case 3:  // an answer with something else in it
        mad[3] = 0x81;
        put(mad, 64 + below(56), number(), 8);
        break;
    }
    if (mad[1] == 0x81) {
      if ((mad[3] & 0x80) != 0) {
        mad[4] |= 0x80;  // on its way back
        mad[6] = 1;
      } else {
        route(mad);
      }
    }
    send(mad);
  }

  void second_manager() {
    Datagram mad = datagram(0x81, static_cast<std::uint8_t>(1 + below(2)), 0x20, below(7));
    put(mad, 8, number(), 8);
    put(mad, 64, number(), 8);
    put(mad, 72, below(2), 8);
    mad[64 + 20] = static_cast<std::uint8_t>(number());
    route(mad);
    send(mad);
  }

  void second_daemon(std::uint64_t round) {
    Datagram mad = datagram(kHandshakeClass, 3, 1, 0);
    std::copy(kFabricdOui.begin(), kFabricdOui.end(), mad.begin() + 37);
    std::uint8_t* hello = mad.data() + 40;
    std::memcpy(hello, "FBRC", 4);
    put(mad, 44, 1, 2);
    hello[6] = static_cast<std::uint8_t>(1 + (below(4) == 0 ? below(3) : 0));
    hello[7] = static_cast<std::uint8_t>(below(4));
    put(mad, 48, 0xBAD, 8);
    put(mad, 56, below(2) != 0 ? round : 7, 4);
    hello[21] = static_cast<std::uint8_t>(1 + below(5));
    put(mad, 64, 1 + below(3), 4);
    // The sessions that the other end has shown, so that it believes.
    for (const Datagram& other : heard_)
      if (other[1] == kHandshakeClass && below(2) != 0) {
        std::memcpy(hello + 28, other.data() + 40 + 16, 4);
        std::memcpy(hello + 32, other.data() + 40 + 24, 4);
      }
    put(mad, 40 + 36, number(), 8);
    put(mad, 40 + 44, number(), 8);
    send(mad);
  }

  void join(std::uint64_t round) {
    static constexpr std::uint16_t kAttributes[] = {0x38, 0x38, 0x31, 0x03};
    const std::uint16_t attribute = kAttributes[below(4)];
    Datagram mad = datagram(UMAD_CLASS_SUBN_ADM, 2, attribute, 0);
    put(mad, 8, round, 8);
    if (attribute == 0x38) {
      put(mad, 48, 0x130C7, 8);  // what creates a group
      put(mad, 56, 0xFF12401BFFFF0000, 8);
      put(mad, 64, round, 8);
      put(mad, 72, 0xFE80000000000000, 8);
      put(mad, 80, number(), 8);
      put(mad, 88, 0x80010000, 4);
      put(mad, 96, 0xFFFF0000, 4);
      mad[56 + 44] = 1;
      mad[56 + 46] = 1;
    } else {
      put(mad, 48, number(), 8);
      for (std::size_t i = 56; i < 200; ++i) mad[i] = static_cast<std::uint8_t>(number());
    }
    send(mad);
  }

  void flood(std::uint64_t round) {
    switch (round % 4) {
      case 0: {
        Datagram mad = datagram(0x81, 1, 0x20, 0);  // for the subnet manager itself: SMInfo
        route(mad);
        put(mad, 8, round, 8);
        return send(mad);
      }
      case 1: {
        Datagram mad = datagram(UMAD_CLASS_SUBN_ADM, 0x12, 0x11, 0);  // all nodes
        put(mad, 8, round, 8);
        return send(mad);
      }
      case 2: {
        Datagram mad = datagram(0x81, 5, 2, 0);  // traps
        route(mad);
        put(mad, 64, 0x80000004008000FF, 8);
        return send(mad);
      }
      default:
        return second_daemon(round);
    }
  }

  int port_ = -1, port_number_, directed_ = -1, routed_ = -1, administration_ = -1, multi_packet_ = -1,
      handshake_ = -1;
  std::uint16_t manager_lid_ = 1;
  std::mt19937_64 random_;
  std::deque<Datagram> heard_;
  std::uint64_t sent_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr, "hostile_neighbour DEVICE PORT KIND SECONDS [SEED]\n");
    return 2;
  }
  Neighbour neighbour(arguments[1], std::atoi(arguments[2]),
                      count > 5 ? std::strtoull(arguments[5], nullptr, 10) : 1);
  const std::uint64_t sent =
      neighbour.run(arguments[3], std::chrono::duration<double>(std::atof(arguments[4])));
  std::printf("%llu\n", static_cast<unsigned long long>(sent));
  return 0;
}
