// Data threads of a ring of hosts in one process: real threads and buffers; verbs within the process, so that
// the test decides what a dying cable has delivered, acknowledged and lost; socket pairs as TUN devices.
#include "fabricd/forwarder/data_thread.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <map>
#include <numeric>
#include <random>

#include "fabricd/addresses.hpp"
#include "tests/unit/fake_verbs.hpp"

namespace fabric::daemon {
namespace {

using namespace std::chrono_literals;
constexpr PortIndex kLeft{0}, kRight{1};

unsigned test_seed() {
  const char* wish = std::getenv("TEST_SEED");
  return wish != nullptr ? static_cast<unsigned>(std::atoi(wish)) : std::random_device{}();
}

/// Waits for something that another thread does.
template <class Condition>
bool eventually(Condition&& condition) {
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

struct Host {
  Host(std::uint16_t index, const ForwarderConfiguration& configuration)
      : index(index),
        arena(configuration.ports * (configuration.receive_buffers + configuration.send_buffers)),
        tun(open_socket(kernel)),
        data(arena, tun, configuration) {
    for (PortIndex port : {kLeft, kRight}) {
      channels[port] = ibv_create_comp_channel(&adapter.context);
      cqs[port] = ibv_create_cq(&adapter.context, 0, nullptr, channels[port], 0);
      data.open(port, {cqs[port], channels[port], 0});
    }
  }
  ~Host() {
    data.stop();
    for (PortIndex port : {kLeft, kRight}) {
      ibv_destroy_cq(cqs[port]);
      ibv_destroy_comp_channel(channels[port]);
    }
    close(kernel);
  }
  static int open_socket(int& other) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) != 0) std::abort();
    // All that a test can have on its way in fits on its way out, however late the test comes to take it.
    constexpr int kIn = 1 << 22, kOut = 1 << 23;
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUFFORCE, &kIn, sizeof kIn);
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUFFORCE, &kOut, sizeof kOut);
    other = ends[0];
    return ends[1];
  }
  [[nodiscard]] std::uint64_t count(HostCounter counter) const { return data.counters()[counter].get(); }

  std::uint16_t index;
  fake::Adapter adapter;
  std::map<PortIndex, ibv_comp_channel*> channels;
  std::map<PortIndex, ibv_cq*> cqs;
  std::map<PortIndex, fake::QueuePair*> pairs;
  int kernel = -1;  ///< the kernel's side of the device
  BufferArena arena;
  TunDevice tun;
  DataThread data;
};

class Ring {
 public:
  explicit Ring(unsigned size, unsigned send_buffers = 128) {
    ForwarderConfiguration configuration;
    configuration.receive_buffers = 32;
    configuration.send_buffers = send_buffers;
    configuration.reorder = 10s;  // longer than a loaded machine keeps a thread waiting; nothing is lost here
    configuration.incarnation = 7;
    for (unsigned i = 1; i <= size; ++i)
      hosts.push_back(std::make_unique<Host>(static_cast<std::uint16_t>(i), configuration));
    for (unsigned i = 1; i <= size; ++i) connect(i);
    publish();
  }
  ~Ring() {
    for (unsigned i = 1; i <= hosts.size(); ++i) disconnect(i);
  }
  Host& at(unsigned i) { return *hosts[(i - 1) % hosts.size()]; }

  /// Cable i joins host i's right port to host i+1's left one.
  void connect(unsigned i) {
    Host &a = at(i), &b = at(i + 1);
    a.pairs[kRight] = a.adapter.make_pair(a.cqs[kRight]);
    b.pairs[kLeft] = b.adapter.make_pair(b.cqs[kLeft]);
    fake::join(a.pairs[kRight], b.pairs[kLeft]);
    a.data.prepare(kRight, a.pairs[kRight]);
    b.data.prepare(kLeft, b.pairs[kLeft]);
    a.data.attach(kRight, a.pairs[kRight], 100'000'000'000);
    b.data.attach(kLeft, b.pairs[kLeft], 100'000'000'000);
  }
  /// As the control thread does it: error state, then detach.
  void detach(Host& host, PortIndex port) {
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_ERR;
    ibv_modify_qp(host.pairs[port], &attributes, IBV_QP_STATE);
    host.data.detach(port, Forwarder::kDrainLimit);
  }
  void disconnect(unsigned i) {
    detach(at(i), kRight);
    detach(at(i + 1), kLeft);
  }
  /// From now on nothing is acknowledged; so many messages of each direction still arrive.
  void die(unsigned i, unsigned unheard_right, unsigned unheard_left) {
    const std::lock_guard lock(fake::mutex);
    at(i).pairs[kRight]->fault = {true, unheard_right};
    at(i + 1).pairs[kLeft]->fault = {true, unheard_left};
  }
  /// The adapters find out.
  void retries_exceeded(unsigned i) {
    const std::lock_guard lock(fake::mutex);
    at(i).pairs[kRight]->fail(IBV_WC_RETRY_EXC_ERR);
    at(i + 1).pairs[kLeft]->fail(IBV_WC_RETRY_EXC_ERR);
  }

  /// Everybody's tables: way 0 to the right, way 1 to the left; the source takes the shorter one, but never
  /// over the dead cable.
  void publish(unsigned dead = 0) {
    const auto size = static_cast<unsigned>(hosts.size());
    for (unsigned self = 1; self <= size; ++self) {
      auto state = std::make_shared<routing::ForwardingState>();
      state->generation = ++generation;
      state->self = HostIndex(static_cast<std::uint16_t>(self));
      state->egress.assign((size + 2) * routing::kWays, kNoPort);
      state->hosts.resize(size + 2);  // one that is on the map but cannot be reached
      for (unsigned host = 1; host <= size + 1; ++host) {
        const HostIndex index(static_cast<std::uint16_t>(host));
        routing::HostRoute& route = state->hosts[host];
        route.guid = Guid(host);
        route.index = index;
        if (host > size) continue;
        if (host == self) continue;
        const unsigned right = (host + size - self) % size;
        bool over_dead = false;  // going right from self to host
        for (unsigned step = 0; step < right; ++step) over_dead |= (self + step - 1) % size + 1 == dead;
        const bool go_right = dead == 0 ? right <= size / 2 : !over_dead;
        route.reachable = true;
        route.lanes.assign(4, go_right ? 0 : 1);
        state->egress[routing::lid_of(index, 0).value()] = kRight;
        state->egress[routing::lid_of(index, 1).value()] = kLeft;
      }
      auto snapshot = std::make_unique<Snapshot>();
      routing::Prefix pool{*parse_address("10.88.0.0"), 112};
      snapshot->prefixes = routing::PrefixTable(std::span(&pool, 1), {});
      snapshot->state = std::move(state);
      at(self).data.publish(std::move(snapshot));
    }
  }

  /// A UDP packet that carries a number, from a flow of its own.
  bool inject(unsigned from, unsigned to, unsigned flow, std::uint32_t number, std::size_t size = 64) {
    std::vector<std::byte> packet(kVirtioHeader + size);
    std::byte* ip = packet.data() + kVirtioHeader;
    ip[0] = std::byte{0x45};
    ip[9] = std::byte{17};
    for (auto [offset, host] : {std::pair{12, from}, std::pair{16, to}}) {
      ip[offset] = std::byte{10};
      ip[offset + 1] = std::byte{88};
      ip[offset + 3] = std::byte(host);
    }
    ip[21] = std::byte(flow);
    std::memcpy(ip + 28, &number, 4);
    return send(at(from).kernel, packet.data(), packet.size(), 0) == static_cast<ssize_t>(packet.size());
  }
  void inject_now(unsigned from, unsigned to, unsigned flow, std::uint32_t number) {
    ASSERT_TRUE(eventually([&] { return inject(from, to, flow, number); }));
  }

  struct Arrived {
    unsigned from, flow;
    std::uint32_t number;
  };
  /// What has come out at a host's device since last asked.
  std::vector<Arrived> take(unsigned host) {
    std::vector<Arrived> arrived;
    std::array<std::byte, 70'000> buffer;
    for (ssize_t n; (n = recv(at(host).kernel, buffer.data(), buffer.size(), 0)) > 0;) {
      const std::byte* ip = buffer.data() + kVirtioHeader;
      std::uint32_t number = 0;
      std::memcpy(&number, ip + 28, 4);
      arrived.push_back({std::to_integer<unsigned>(ip[15]), std::to_integer<unsigned>(ip[21]), number});
    }
    return arrived;
  }
  /// Every buffer is free or in a receive queue again.
  bool at_rest() {
    for (auto& host : hosts) {
      std::size_t receives = 0;
      const std::lock_guard lock(fake::mutex);
      for (auto& [port, pair] : host->pairs) receives += pair->receives.size();
      if (host->arena.available_now() + receives != host->arena.size()) return false;
    }
    return true;
  }
  std::uint64_t drops() {
    std::uint64_t sum = 0;
    for (auto& host : hosts) {
      const auto values = host->data.counters().snapshot();
      for (std::size_t i = 0; i < values.size(); ++i)
        if (kHostCounterTexts[i].name.starts_with("drop_") && kHostCounterTexts[i].name != "drop_duplicate")
          sum += values[i];
    }
    return sum;
  }

  std::uint64_t generation = 0;
  std::vector<std::unique_ptr<Host>> hosts;
};

/// Numbers per flow: each once, in order.
class Ledger {
 public:
  void take(const std::vector<Ring::Arrived>& arrived) {
    for (const auto& one : arrived) {
      std::uint32_t& next = next_[{one.from, one.flow}];
      if (one.number != next) ++wrong_;
      next = one.number + 1;
      ++count_;
    }
  }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] std::uint64_t wrong() const { return wrong_; }  ///< lost, duplicated or out of order

 private:
  std::map<std::pair<unsigned, unsigned>, std::uint32_t> next_;
  std::uint64_t count_ = 0, wrong_ = 0;
};

TEST(DataThread, CarriesPacketsBetweenAllPairs) {
  Ring ring(5, 512);  // room for all of it, however seldom a relay's thread runs
  std::map<unsigned, Ledger> ledgers;
  for (std::uint32_t number = 0; number < 200; ++number)
    for (unsigned from = 1; from <= 5; ++from)
      for (unsigned to = 1; to <= 5; ++to)
        if (from != to) ring.inject_now(from, to, 0, number);
  for (unsigned to = 1; to <= 5; ++to) {
    EXPECT_TRUE(eventually([&] {
      ledgers[to].take(ring.take(to));
      return ledgers[to].count() == 800;
    })) << ledgers[to].count();
    EXPECT_EQ(ledgers[to].wrong(), 0u);
  }
  // Of 20 pairs 10 are two cables apart.
  std::uint64_t relayed = 0;
  for (auto& host : ring.hosts) relayed += host->count(HostCounter::frames_relayed);
  EXPECT_EQ(relayed, 2000u);
  EXPECT_EQ(ring.drops(), 0u);
  EXPECT_TRUE(eventually([&] { return ring.at_rest(); }));
}

TEST(DataThread, CarriesSuperPacketsWhole) {
  Ring ring(3);
  ASSERT_TRUE(ring.inject(1, 2, 1, 0, 65535));
  pollfd readable{ring.at(2).kernel, POLLIN, 0};
  ASSERT_EQ(poll(&readable, 1, 20'000), 1);
  std::vector<std::byte> buffer(70'000);
  EXPECT_EQ(recv(ring.at(2).kernel, buffer.data(), buffer.size(), 0),
            static_cast<ssize_t>(kVirtioHeader + 65535));
}

TEST(DataThread, AnswersForHostsThatCannotBeReached) {
  Ring ring(3);
  ASSERT_TRUE(ring.inject(1, 4, 1, 0));
  pollfd readable{ring.at(1).kernel, POLLIN, 0};
  ASSERT_EQ(poll(&readable, 1, 20'000), 1);
  std::array<std::byte, 1000> answer{};
  ASSERT_EQ(recv(ring.at(1).kernel, answer.data(), answer.size(), 0),
            static_cast<ssize_t>(kVirtioHeader + 28 + 64));
  const std::byte* ip = answer.data() + kVirtioHeader;
  EXPECT_EQ(ip[9], std::byte{1});
  EXPECT_EQ(ip[20], std::byte{3});
  EXPECT_EQ(ring.at(1).count(HostCounter::drop_unreachable), 1u);
  // Many at once: the answers are limited, the drops counted.
  for (std::uint32_t i = 0; i < 2000; ++i) ring.inject_now(1, 4, 1, i);
  EXPECT_TRUE(eventually([&] { return ring.at(1).count(HostCounter::drop_unreachable) == 2001; }));
  EXPECT_LT(ring.at(1).count(HostCounter::unreachable_sent), 1000u);
}

/// The heart of it: cables die under traffic, with an arbitrary tail lost and an arbitrary part delivered but
/// not acknowledged; nothing is lost, doubled or out of order.
TEST(DataThread, ACutCableLosesNothing) {
  const unsigned seed = test_seed();
  SCOPED_TRACE(testing::Message() << "TEST_SEED=" << seed);
  std::mt19937 random(seed);
  Ring ring(4, 512);
  // 1 sends to 2 over the cable, to 3 over 2 as a relay; 2 to 1 against it.
  const std::vector<std::pair<unsigned, unsigned>> flows{{1, 2}, {1, 3}, {2, 1}};
  std::map<unsigned, Ledger> ledgers;
  std::map<std::pair<unsigned, unsigned>, std::uint32_t> sent;
  std::uint64_t total = 0, resent = 0;
  const auto traffic = [&](unsigned packets) {
    for (unsigned i = 0; i < packets; ++i) {
      const auto& flow = flows[random() % flows.size()];
      ring.inject_now(flow.first, flow.second, 1, sent[flow]++);
      ++total;
    }
  };
  const auto take_all = [&] {
    std::uint64_t count = 0;
    for (unsigned host = 1; host <= 3; ++host) {
      ledgers[host].take(ring.take(host));
      count += ledgers[host].count();
    }
    return count;
  };
  for (int cut = 0; cut < 60; ++cut) {
    SCOPED_TRACE(testing::Message() << "cut " << cut);
    const unsigned cable = 1 + random() % 2;  // between 1 and 2, or between 2 and 3
    traffic(random() % 100);
    ring.die(cable, random() % 40, random() % 40);
    traffic(random() % 100);
    if (random() % 2 == 0) {
      ring.retries_exceeded(cable);  // completions find it
      traffic(random() % 50);
    }
    ring.disconnect(cable);  // the control thread takes the queue pairs down, or finds it first
    traffic(random() % 50);
    ring.publish(cable);  // the sources take the other way
    traffic(random() % 50);
    // Mended once all has arrived: two faults at a time are another matter.
    ASSERT_TRUE(eventually([&] { return take_all() == total; })) << take_all() << " of " << total;
    ring.connect(cable);
    ring.publish();
    traffic(random() % 50);
    ASSERT_TRUE(eventually([&] { return take_all() == total; })) << take_all() << " of " << total;
  }
  for (const auto& [host, ledger] : ledgers) EXPECT_EQ(ledger.wrong(), 0u) << "host " << host;
  EXPECT_EQ(ring.drops(), 0u);
  for (auto& host : ring.hosts) resent += host->count(HostCounter::frames_resent);
  EXPECT_GT(resent, 0u) << "the test has tested nothing";
  EXPECT_TRUE(eventually([&] { return ring.at_rest(); })) << "a buffer has gone astray";
}

TEST(DataThread, AFailedCompletionIsReportedOnce) {
  Ring ring(3);
  ring.die(1, 0, 0);
  ring.inject_now(1, 2, 1, 0);
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(fake::mutex);
    return !ring.at(1).pairs[kRight]->sends.empty();
  }));
  EXPECT_FALSE(ring.at(1).data.take_suspect(kRight));
  ring.retries_exceeded(1);
  std::optional<ibv_wc_status> status;
  ASSERT_TRUE(eventually([&] { return (status = ring.at(1).data.take_suspect(kRight)).has_value(); }));
  EXPECT_EQ(*status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_FALSE(ring.at(1).data.take_suspect(kRight));
  pollfd event{ring.at(1).data.event_descriptor(), POLLIN, 0};
  EXPECT_EQ(poll(&event, 1, 0), 1);
  Ledger ledger;
  EXPECT_TRUE(eventually([&] {
    ledger.take(ring.take(2));
    return ledger.count() == 1;
  })) << "went the other way";
}

/// Local senders wait in front of the device while an egress queue does not drain; nothing is dropped.
TEST(DataThread, AStuckCableStopsLocalSendersOnly) {
  Ring ring(3);
  {
    const std::lock_guard lock(fake::mutex);
    ring.at(1).pairs[kRight]->hold = true;
  }
  std::uint32_t injected = 0;
  for (; injected < 100'000 && ring.inject(1, 2, 1, injected); ++injected) {
  }
  ASSERT_TRUE(eventually([&] { return ring.at(1).count(HostCounter::local_pauses) > 0; }));
  while (injected < 200'000 && ring.inject(1, 2, 1, injected)) ++injected;
  EXPECT_LT(injected, 200'000u) << "the device pushes back";
  EXPECT_LE(ring.at(1).count(HostCounter::tun_read_packets), 100u);
  // Host 1 still relays and receives: 2 to 3 over it, and 3 to 1.
  Ledger ledger;
  for (std::uint32_t i = 0; i < 100; ++i) ring.inject_now(3, 1, 2, i);
  EXPECT_TRUE(eventually([&] {
    ledger.take(ring.take(1));
    return ledger.count() == 100;
  }));
  {
    const std::lock_guard lock(fake::mutex);
    ring.at(1).pairs[kRight]->hold = false;
    ring.at(1).pairs[kRight]->progress();
  }
  Ledger late;
  EXPECT_TRUE(eventually([&] {
    late.take(ring.take(2));
    return late.count() == injected;
  })) << late.count()
      << " of " << injected;
  EXPECT_EQ(late.wrong(), 0u);
  EXPECT_EQ(ring.drops(), 0u);
}

/// Every host sends as much as it can over two relays, both ways round, with few buffers: a cycle of hosts
/// that waited for each other would stand still here.
TEST(DataThread, NoCycleOfHostsWaitsForEachOther) {
  Ring ring(6, 64);
  constexpr std::uint32_t kEach = 3000;
  std::array<std::uint32_t, 7> sent{};
  std::uint64_t total = 0;
  std::array<std::uint64_t, 7> arrived_at{};
  const auto take_all = [&] {
    for (unsigned host = 1; host <= 6; ++host) arrived_at[host] += ring.take(host).size();
    return std::accumulate(arrived_at.begin(), arrived_at.end(), std::uint64_t{0});
  };
  const auto deadline = std::chrono::steady_clock::now() + 60s;
  while (total < 6 * kEach && std::chrono::steady_clock::now() < deadline) {
    for (unsigned host = 1; host <= 6; ++host) {
      while (sent[host] < kEach && ring.inject(host, (host + 2) % 6 + 1, sent[host] % 2, sent[host])) {
        ++sent[host];
        ++total;
      }
    }
    take_all();
  }
  ASSERT_EQ(total, 6 * kEach) << "senders stand still";
  // What was dropped for want of buffers is counted: sent = arrived + dropped, and everything ends.
  EXPECT_TRUE(eventually([&] { return take_all() + ring.drops() == total; }))
      << take_all() << " + " << ring.drops() << " of " << total;
  EXPECT_TRUE(eventually([&] { return ring.at_rest(); }));
  // How much arrives depends on the machine's load.
  EXPECT_GT(take_all(), 0u);
}

TEST(DataThread, SurvivesAnythingThatANeighbourSends) {
  Ring ring(3);
  std::mt19937 random(11);
  auto* pair = ring.at(2).pairs[kLeft];  // what it sends, host 1 receives
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::byte> frame(random() % 200);
    for (auto& byte : frame) byte = std::byte(random());
    if (!frame.empty() && random() % 4 != 0) frame[0] = std::byte(0x10 | (random() & 0xF));
    if (frame.size() > 6 && random() % 4 != 0) {
      frame[2] = std::byte{0};
      frame[3] = std::byte(random() % 12);
      frame[6] = std::byte(random() % 3 << 4 | random() % 16);
      frame[4] = std::byte{0};
      frame[5] = std::byte(random() % 12);
    }
    ibv_sge sge{reinterpret_cast<std::uintptr_t>(frame.data()), static_cast<std::uint32_t>(frame.size()), 0};
    ibv_send_wr request{};
    request.wr_id = ~std::uint64_t{0};
    request.sg_list = &sge;
    request.num_sge = 1;
    request.opcode = IBV_WR_SEND;
    ibv_send_wr* bad = nullptr;
    ibv_post_send(pair, &request, &bad);
  }
  EXPECT_TRUE(eventually([&] {
    return ring.at(1).data.counters(kRight)[PortCounter::received_frames].get() >= 5000 && ring.at_rest();
  }));
  EXPECT_GT(ring.at(1).count(HostCounter::drop_malformed), 0u);
  // And still works.
  ring.take(2);
  ring.inject_now(1, 2, 1, 0);
  EXPECT_TRUE(eventually([&] { return !ring.take(2).empty(); }));
}

}  // namespace
}  // namespace fabric::daemon
