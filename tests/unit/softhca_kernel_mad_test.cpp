// What a host's kernel does with MADs: agents, transactions, segmentation. Two hosts, simulated clock.
#include <cerrno>
#include <cstring>
#include <map>

#include "tests/unit/softhca_fixture.hpp"
#include "verbs/softhca/kernel_mad.hpp"

namespace fabric::softhca::testing {
namespace {

constexpr std::uint8_t kGetTable = 0x12;

class Kernel : public ModelFixture, public KernelMad::Users {
 public:
  struct Message {
    ib_user_mad header;
    std::vector<std::uint8_t> data;
  };

  explicit Kernel(std::uint64_t seed = 1) : ModelFixture(2, seed), kernel(model, *this) {
    bring_up();
    started = true;
    client = kernel.open(port(2, 1));
    server = kernel.open(port(1, 2));
  }

  void received(PortNumber number, const Packet& packet) override {
    if (started) {
      kernel.receive(now, number, packet);
    } else {
      ModelFixture::received(number, packet);
    }
  }
  void to_user(UmadId user, const ib_user_mad& header, std::span<const std::uint8_t> data) override {
    inbox[user].push_back({header, {data.begin(), data.end()}});
    if (on_message) on_message(user, inbox[user].back());
  }

  /// Runs the clock until nothing is due within `time`.
  void run(Duration time) {
    const TimePoint until = now + time;
    for (;;) {
      auto next = model.next_timer();
      if (const auto other = kernel.next_timer(); other && (!next || *other < *next)) next = other;
      if (!next || *next > until) break;
      now = std::max(now, *next);
      model.run(now);
      kernel.run(now);
    }
    now = until;
  }

  static AgentRequest agent(std::uint32_t mgmt_class, std::initializer_list<unsigned> methods,
                            std::uint32_t version = 1) {
    AgentRequest request{
        .qpn = mgmt_class == kClassSubnLid ? 0u : 1u, .mgmt_class = mgmt_class, .class_version = version};
    for (const unsigned method : methods) {
      request.method_mask[method / 64] |= std::uint64_t{1} << (method % 64);
    }
    return request;
  }

  void send(UmadId user, int agent_id, std::uint16_t lid, std::span<const std::uint8_t> data,
            std::uint32_t timeout_ms = 0, std::uint32_t retries = 0) {
    ib_user_mad header{};
    header.agent_id = static_cast<std::uint32_t>(agent_id);
    header.timeout_ms = timeout_ms;
    header.retries = retries;
    header.addr.qpn = htonl(1);
    header.addr.lid = htons(lid);
    header.addr.qkey = htonl(qkey);
    std::vector<std::uint8_t> message(sizeof header + data.size());
    std::memcpy(message.data(), &header, sizeof header);
    std::copy(data.begin(), data.end(), message.begin() + sizeof header);
    kernel.send(now, user, message);
  }

  static Mad request(std::uint8_t mgmt_class, std::uint8_t method, std::uint8_t version = 1) {
    Mad mad = smp(method, 0x35);
    mad[kMgmtClass] = mgmt_class;
    mad[kClassVersion] = version;
    return mad;
  }

  KernelMad kernel;
  std::uint32_t qkey = kGsiQkey;  // of what send() sends
  bool started = false;
  UmadId client = 0, server = 0;
  std::map<UmadId, std::vector<Message>> inbox;
  std::function<void(UmadId, const Message&)> on_message;
};

TEST_F(Kernel, RequestAndResponse) {
  const int asking = kernel.register_agent(client, agent(0x0A, {}));
  const int answering = kernel.register_agent(server, agent(0x0A, {kMethodGet}));
  send(client, asking, 1, request(0x0A, kMethodGet), 100);
  ASSERT_EQ(inbox[server].size(), 1u);
  const Message& got = inbox[server][0];
  EXPECT_EQ(got.header.agent_id, static_cast<std::uint32_t>(answering));
  EXPECT_EQ(ntohs(got.header.addr.lid), 2);
  EXPECT_EQ(ntohl(got.header.addr.qpn), 1u);
  EXPECT_EQ(got.header.length, sizeof(ib_user_mad) + 256);
  EXPECT_EQ(load64(got.data, kTransaction) & 0xFFFFFFFF, 0x1234u);

  auto response = got.data;
  response[kMethod] = kMethodGetResp;
  send(server, answering, 2, response);
  ASSERT_EQ(inbox[client].size(), 1u);
  EXPECT_EQ(inbox[client][0].header.status, 0u);
  EXPECT_EQ(inbox[client][0].header.agent_id, static_cast<std::uint32_t>(asking));
  // The second response to one request is nobody's; and no timeout comes.
  send(server, answering, 2, response);
  run(std::chrono::seconds(1));
  EXPECT_EQ(inbox[client].size(), 1u);
}

TEST_F(Kernel, TimeoutAfterTheLastRetry) {
  const int asking = kernel.register_agent(client, agent(0x0A, {}));
  send(client, asking, 3, request(0x0A, kMethodGet), 100, 3);  // LID 3 is nobody's
  const auto sent = shared(port(2, 1)).counters.xmit_packets.load();
  run(std::chrono::milliseconds(399));
  EXPECT_TRUE(inbox[client].empty());
  EXPECT_EQ(shared(port(2, 1)).counters.xmit_packets, sent + 3);
  run(std::chrono::milliseconds(1));
  ASSERT_EQ(inbox[client].size(), 1u);
  EXPECT_EQ(inbox[client][0].header.status, static_cast<std::uint32_t>(ETIMEDOUT));
  EXPECT_EQ(inbox[client][0].data.size(), kMadHeaderSize);
  EXPECT_EQ(shared(port(2, 1)).counters.xmit_packets, sent + 3);
}

TEST_F(Kernel, UnwantedGetIsRefusedAndUnwantedSendVanishes) {
  const int asking = kernel.register_agent(client, agent(0x0A, {}));
  send(client, asking, 1, request(0x0A, kMethodGet), 100);
  ASSERT_EQ(inbox[client].size(), 1u);
  EXPECT_EQ(load16(inbox[client][0].data, kStatus), kStatusBadAttribute);
  Mad report = request(0x0A, 0x06);
  store64(report, kTransaction, 2);
  send(client, asking, 1, report, 100);
  run(std::chrono::seconds(1));
  ASSERT_EQ(inbox[client].size(), 2u);
  EXPECT_EQ(inbox[client][1].header.status, static_cast<std::uint32_t>(ETIMEDOUT));
}

TEST_F(Kernel, ClassVersionAndOuiSelectTheAgent) {
  AgentRequest mine = agent(0x32, {kMethodGet}), other = mine;
  mine.oui = 0x0002C9;
  other.oui = 0x001405;
  const int first = kernel.register_agent(server, mine);
  const int second = kernel.register_agent(server, other);
  EXPECT_EQ(kernel.register_agent(server, mine), -EINVAL);
  EXPECT_EQ(kernel.register_agent(server, agent(0x32, {kMethodGet})), -EINVAL);  // no OUI
  const int third = kernel.register_agent(server, agent(kClassSubnAdm, {kMethodGet}, 2));
  const int asking = kernel.register_agent(client, agent(0x0A, {}));
  const auto who = [&](Mad mad) {
    inbox[server].clear();
    send(client, asking, 1, mad);
    return inbox[server].empty() ? -1 : static_cast<int>(inbox[server][0].header.agent_id);
  };
  Mad vendor = request(0x32, kMethodGet);
  store32(vendor, 36, 0x0002C9);
  EXPECT_EQ(who(vendor), first);
  store32(vendor, 36, 0x001405);
  EXPECT_EQ(who(vendor), second);
  store32(vendor, 36, 0x001406);
  EXPECT_EQ(who(vendor), -1);
  EXPECT_EQ(who(request(kClassSubnAdm, kMethodGet, 2)), third);
  EXPECT_EQ(who(request(kClassSubnAdm, kMethodGet, 1)), -1);
  EXPECT_EQ(who(request(kClassSubnAdm, kMethodSet, 2)), -1);
}

TEST_F(Kernel, QueuePairsAndClassesGoTogether) {
  AgentRequest wrong = agent(kClassSubnLid, {kMethodTrap});
  wrong.qpn = 1;
  EXPECT_EQ(kernel.register_agent(client, wrong), -EINVAL);
  wrong = agent(kClassSubnAdm, {});
  wrong.qpn = 0;
  EXPECT_EQ(kernel.register_agent(client, wrong), -EINVAL);
  EXPECT_EQ(kernel.register_agent(client, agent(0x50, {})), -EINVAL);  // no such class
  EXPECT_EQ(kernel.register_agent(client, agent(0x04, {}, 8)), -EINVAL);
}

// 10.2.5: queue pair 1 takes packets with its Q_Key only.
TEST_F(Kernel, WrongQkeyIsAViolation) {
  const int asking = kernel.register_agent(client, agent(0x0A, {}));
  kernel.register_agent(server, agent(0x0A, {kMethodGet}));
  qkey = 0x11111111;
  send(client, asking, 1, request(0x0A, kMethodGet), 100);
  EXPECT_TRUE(inbox[server].empty());
  EXPECT_EQ(shared(port(1, 2)).qkey_violations, 1u);
}

// A program may write what it likes to its umad port: nothing that it writes harms the hardware or others.
TEST_F(Kernel, NoiseHarmsNobody) {
  AgentRequest rmpp = agent(kClassSubnAdm, {kMethodGet, kMethodSet, 0x12}, 2);
  rmpp.rmpp_version = 1;
  std::vector<std::uint32_t> agents;
  for (const AgentRequest& what : {rmpp, agent(0x0A, {kMethodGet}), agent(kClassSubnLid, {}), agent(0, {})})
    agents.push_back(static_cast<std::uint32_t>(kernel.register_agent(client, what)));
  rmpp.method_mask[0] = 1 << 3;
  kernel.register_agent(server, rmpp);
  std::mt19937 random(1);
  for (int turn = 0; turn < 20'000; ++turn) {
    // Mostly noise, with enough sense in it to come far.
    std::vector<std::uint8_t> message(random() % 4 == 0 ? random() % 2000 : sizeof(ib_user_mad) + 256);
    for (auto& byte : message) byte = random() % 3 == 0 ? static_cast<std::uint8_t>(random()) : 0;
    if (message.size() >= sizeof(ib_user_mad) + kRmppHeaderEnd) {
      ib_user_mad header;
      std::memcpy(&header, message.data(), sizeof header);
      header.agent_id = agents[random() % agents.size()];
      header.timeout_ms %= 10'000;
      header.retries %= 10;
      header.addr.qpn = htonl(random() % 3);
      header.addr.lid = htons(static_cast<std::uint16_t>(random() % 4));
      header.addr.qkey = htonl(kGsiQkey);
      std::memcpy(message.data(), &header, sizeof header);
      std::uint8_t* mad = message.data() + sizeof header;
      constexpr std::uint8_t kClasses[] = {
          kClassSubnLid, kClassSubnDirected, kClassSubnAdm, kClassPerformance, 0x0A, 0x32};
      mad[kBaseVersion] = 1;
      mad[kMgmtClass] = kClasses[random() % std::size(kClasses)];
      mad[kClassVersion] = static_cast<std::uint8_t>(1 + random() % 2);
      if (random() % 2 == 0) {
        mad[kRmppVersion] = 1;
        mad[kRmppType] = static_cast<std::uint8_t>(random() % 6);
        mad[kRmppFlags] = static_cast<std::uint8_t>(random() % 8);
      }
    }
    kernel.send(now, client, message);
    if (turn % 100 == 0) run(std::chrono::milliseconds(random() % 5000));
  }
  run(std::chrono::seconds(200));
  // Somebody else's port goes on as before.
  inbox.clear();
  const int asking = kernel.register_agent(server, agent(0x0B, {}));
  Mad info = smp(kMethodGet, IB_ATTR_NODE_INFO);
  info[kMgmtClass] = 0x0B;
  send(server, asking, 1, info, 100);
  EXPECT_EQ(inbox[server].size(), 1u);
}

// Closing a port in the middle of everything.
TEST_F(Kernel, ClosingForgetsRequests) {
  const int asking = kernel.register_agent(client, agent(0x0A, {}));
  send(client, asking, 3, request(0x0A, kMethodGet), 100, 3);
  kernel.close(client);
  run(std::chrono::seconds(1));
  EXPECT_TRUE(inbox[client].empty());
}

class Segments : public Kernel {
 public:
  explicit Segments(std::uint64_t seed = 1) : Kernel(seed) {
    AgentRequest receiver = agent(kClassSubnAdm, {}, 2), sender = agent(kClassSubnAdm, {kGetTable}, 2);
    receiver.rmpp_version = sender.rmpp_version = 1;
    asking = kernel.register_agent(client, receiver);
    answering = kernel.register_agent(server, sender);
    on_message = [this](UmadId user, const Message& message) {
      if (user != server || message.header.status != 0) return;
      std::vector<std::uint8_t> response(message.data.begin(), message.data.begin() + 56);
      response[kMethod] = kGetTable | kResponseBit;
      response[kRmppVersion] = response[kRmppType] = 1;
      response[kRmppFlags] = kRmppActive;
      response.insert(response.end(), table.begin(), table.end());
      send(server, answering, 2, response, 100, 10);
    };
  }

  void ask(std::size_t bytes, std::uint32_t timeout_ms = 60'000) {
    table.resize(bytes);
    for (std::size_t i = 0; i < bytes; ++i) table[i] = static_cast<std::uint8_t>(i * 7 + i / 251);
    send(client, asking, 1, request(kClassSubnAdm, kGetTable, 2), timeout_ms);
  }

  void expect_table() {
    ASSERT_EQ(inbox[client].size(), 1u);
    const Message& message = inbox[client][0];
    EXPECT_EQ(message.header.status, 0u);
    ASSERT_EQ(message.data.size(), 56 + table.size());
    EXPECT_TRUE(std::equal(table.begin(), table.end(), message.data.begin() + 56));
    EXPECT_EQ(message.header.length, sizeof(ib_user_mad) + message.data.size());
  }

  int asking = 0, answering = 0;
  std::vector<std::uint8_t> table;
};

TEST_F(Segments, AnyLength) {
  for (const std::size_t bytes : {0, 1, 199, 200, 201, 400, 12'799, 12'800, 12'801, 13'000, 100'000}) {
    SCOPED_TRACE(bytes);
    inbox.clear();
    ask(bytes);
    expect_table();
    run(std::chrono::seconds(60));  // and nothing more
    EXPECT_EQ(inbox[client].size(), 1u);
  }
}

TEST_F(Segments, WindowsAreKept) {
  // The first segment, its acknowledgement, 64 more, an acknowledgement, the last, an acknowledgement.
  const auto before = shared(port(2, 1)).counters.xmit_packets.load();
  ask(66 * 200);
  expect_table();
  EXPECT_EQ(shared(port(2, 1)).counters.xmit_packets - before, 1u + 3u);
}

TEST_F(Segments, TheSenderIsToldWhenNobodyAcknowledges) {
  on_message = nullptr;
  std::vector<std::uint8_t> response(56 + 1000);
  const Mad header = request(kClassSubnAdm, kGetTable | kResponseBit, 2);
  std::copy_n(header.begin(), 56, response.begin());
  response[kRmppFlags] = kRmppActive;
  send(server, answering, 3, response, 100, 3);
  run(std::chrono::milliseconds(399));
  EXPECT_TRUE(inbox[server].empty());
  run(std::chrono::milliseconds(1));
  ASSERT_EQ(inbox[server].size(), 1u);
  EXPECT_EQ(inbox[server][0].header.status, static_cast<std::uint32_t>(ETIMEDOUT));
}

// Segments and acknowledgements get lost; the message comes whole, once, or not at all.
class LossySegments : public Segments, public ::testing::WithParamInterface<std::uint64_t> {
 public:
  LossySegments() : Segments(GetParam()) {}
};

TEST_P(LossySegments, ComeWholeAndOnce) {
  ask(0);  // without loss: the request itself is sent once only
  inbox.clear();
  model.set_faults(port(1, 2), {.delay_ns = 10'000, .loss_ppm = 50'000});
  model.set_faults(port(2, 1), {.delay_ns = 10'000});
  ask(40'000);
  model.set_faults(port(2, 1), {.delay_ns = 10'000, .loss_ppm = 50'000});
  run(std::chrono::seconds(55));
  expect_table();
}

INSTANTIATE_TEST_SUITE_P(Seeds, LossySegments, ::testing::Range<std::uint64_t>(1, 51));

}  // namespace
}  // namespace fabric::softhca::testing
