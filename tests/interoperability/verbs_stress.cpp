// Many threads on one adapter's port, all objects shared: what ibverbs promises to be thread-safe. Two queue
// pairs are connected to each other over the port's own loopback. Senders post to both, pollers take from one
// completion queue, one thread sleeps on its channel, others register memory and resize the queue meanwhile.
// Every message arrives once and whole. For ThreadSanitizer above all; runs on any adapter.
//
//   verbs_stress DEVICE/PORT [MESSAGES]
#include <infiniband/verbs.h>
#include <poll.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "verbs_programs.hpp"

namespace {

constexpr std::uint32_t kDepth = 64;  ///< messages under way for each queue pair
constexpr std::size_t kSize = 64;
constexpr int kSenders = 2, kPollers = 2;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "verbs_stress: %s (errno: %s)\n", what, std::strerror(errno));
  std::_Exit(1);
}

struct Stress {
  ibv_context* context = nullptr;
  ibv_pd* pd = nullptr;
  ibv_comp_channel* channel = nullptr;
  ibv_cq* cq = nullptr;
  std::array<ibv_qp*, 2> qps{};
  std::vector<std::uint64_t> source, destination;
  ibv_mr *source_mr = nullptr, *destination_mr = nullptr;
  std::uint64_t wanted = 0;  ///< messages for each queue pair
  std::array<std::atomic<std::uint64_t>, 2> posted{}, sent{}, received{};
  std::array<std::mutex, 2> posting;  ///< number and place of a message belong together
  std::atomic<std::uint64_t> sum{0};

  [[nodiscard]] bool finished() const {
    return received[0] == wanted && received[1] == wanted && sent[0] == wanted && sent[1] == wanted;
  }
  [[nodiscard]] unsigned which(std::uint32_t qp_num) const { return qp_num == qps[0]->qp_num ? 0 : 1; }

  void post_receive(unsigned qp, std::uint64_t slot) {
    ibv_sge sge{reinterpret_cast<std::uint64_t>(&destination[(qp * 2 * kDepth + slot) * kSize / 8]), kSize,
                destination_mr->lkey};
    ibv_recv_wr wr{}, *bad = nullptr;
    wr.wr_id = slot;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    require(ibv_post_recv(qps[qp], &wr, &bad) == 0, "ibv_post_recv");
  }

  void send() {
    for (unsigned turn = 0; posted[0] < wanted || posted[1] < wanted; ++turn) {
      const unsigned qp = turn % 2;
      const std::lock_guard lock(posting[qp]);
      const std::uint64_t number = posted[qp];
      if (number == wanted || number - sent[qp] >= kDepth) {
        std::this_thread::yield();
        continue;
      }
      std::uint64_t* words = &source[(qp * kDepth + number % kDepth) * kSize / 8];
      for (std::size_t i = 0; i < kSize / 8; ++i) words[i] = number;
      ibv_sge sge{reinterpret_cast<std::uint64_t>(words), kSize, source_mr->lkey};
      ibv_send_wr wr{}, *bad = nullptr;
      wr.wr_id = number;
      wr.sg_list = &sge;
      wr.num_sge = 1;
      wr.opcode = IBV_WR_SEND;
      wr.send_flags = IBV_SEND_SIGNALED;
      require(ibv_post_send(qps[qp], &wr, &bad) == 0, "ibv_post_send");
      ++posted[qp];
    }
  }

  void take(const ibv_wc& wc) {
    require(wc.status == IBV_WC_SUCCESS, ibv_wc_status_str(wc.status));
    const unsigned qp = which(wc.qp_num);
    if (wc.opcode == IBV_WC_SEND) {
      ++sent[qp];
      return;
    }
    const std::uint64_t* words = &destination[(qp * 2 * kDepth + wc.wr_id) * kSize / 8];
    for (std::size_t i = 1; i < kSize / 8; ++i) require(words[i] == words[0], "a message is not whole");
    sum += words[0];
    post_receive(qp, wc.wr_id);
    ++received[qp];
  }
  void poll_some() {
    std::array<ibv_wc, 4> wcs;
    const int got = ibv_poll_cq(cq, static_cast<int>(wcs.size()), wcs.data());
    require(got >= 0, "ibv_poll_cq");
    for (int i = 0; i < got; ++i) take(wcs[static_cast<std::size_t>(i)]);
    if (got == 0) std::this_thread::yield();
  }

  void sleep_on_channel() {
    unsigned events = 0;
    while (!finished()) {
      require(ibv_req_notify_cq(cq, 0) == 0, "ibv_req_notify_cq");
      poll_some();
      pollfd descriptor{channel->fd, POLLIN, 0};
      if (poll(&descriptor, 1, 10) != 1) continue;  // the other pollers may have had the last one
      ibv_cq* raised = nullptr;
      void* user = nullptr;
      require(ibv_get_cq_event(channel, &raised, &user) == 0 && raised == cq, "ibv_get_cq_event");
      ++events;
    }
    ibv_ack_cq_events(cq, events);
  }
  void change_memory() {
    std::vector<std::uint8_t> bytes(3 * 4096);
    for (unsigned turn = 0; !finished(); ++turn) {
      ibv_mr* mr = ibv_reg_mr(pd, bytes.data(), bytes.size(), IBV_ACCESS_LOCAL_WRITE);
      require(mr != nullptr, "ibv_reg_mr");
      require(ibv_dereg_mr(mr) == 0, "ibv_dereg_mr");
      ibv_qp_attr attr{};
      ibv_qp_init_attr init{};
      require(ibv_query_qp(qps[turn % 2], &attr, IBV_QP_STATE, &init) == 0 && attr.qp_state == IBV_QPS_RTS,
              "ibv_query_qp");
      if (turn % 16 == 15) require(ibv_resize_cq(cq, turn % 32 == 15 ? 1024 : 512) == 0, "ibv_resize_cq");
      std::this_thread::yield();
    }
  }

  void open(const std::string& device, std::uint8_t port) {
    ibv_device** list = ibv_get_device_list(nullptr);
    for (int i = 0; list != nullptr && list[i] != nullptr; ++i)
      if (device == ibv_get_device_name(list[i])) context = ibv_open_device(list[i]);
    require(context != nullptr, "no such device");
    ibv_free_device_list(list);
    ibv_port_attr attr{};
    require(ibv_query_port(context, port, &attr) == 0 && attr.state == IBV_PORT_ACTIVE, "port not Active");
    pd = ibv_alloc_pd(context);
    channel = ibv_create_comp_channel(context);
    cq = ibv_create_cq(context, 512, nullptr, channel, 0);
    require(pd != nullptr && channel != nullptr && cq != nullptr, "setup");
    source.resize(2 * kDepth * kSize / 8);
    destination.resize(4 * kDepth * kSize / 8);
    source_mr = ibv_reg_mr(pd, source.data(), source.size() * 8, IBV_ACCESS_LOCAL_WRITE);
    destination_mr = ibv_reg_mr(pd, destination.data(), destination.size() * 8, IBV_ACCESS_LOCAL_WRITE);
    require(source_mr != nullptr && destination_mr != nullptr, "ibv_reg_mr");
    for (ibv_qp*& qp : qps) {
      ibv_qp_init_attr init{};
      init.send_cq = init.recv_cq = cq;
      init.cap = {kDepth, 2 * kDepth, 1, 1, 0};
      init.qp_type = IBV_QPT_RC;
      qp = ibv_create_qp(pd, &init);
      require(qp != nullptr, "ibv_create_qp");
    }
    for (unsigned i = 0; i < 2; ++i) connect(i, port, attr);
  }
  void connect(unsigned i, std::uint8_t port, const ibv_port_attr& port_attr) {
    ibv_qp_attr attr{};
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = port;
    require(ibv_modify_qp(qps[i], &attr,
                          IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0,
            "INIT");
    for (std::uint64_t slot = 0; slot < 2 * kDepth; ++slot) post_receive(i, slot);
    attr.qp_state = IBV_QPS_RTR;
    attr.path_mtu = port_attr.active_mtu;
    attr.dest_qp_num = qps[1 - i]->qp_num;
    attr.max_dest_rd_atomic = 1;
    attr.min_rnr_timer = 1;
    attr.ah_attr = way_to(address_of(context, port, port_attr), port);
    require(ibv_modify_qp(qps[i], &attr,
                          IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                              IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0,
            "RTR");
    attr.qp_state = IBV_QPS_RTS;
    attr.timeout = 18;
    attr.retry_cnt = attr.rnr_retry = 7;
    attr.max_rd_atomic = 1;
    require(ibv_modify_qp(qps[i], &attr,
                          IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                              IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC) == 0,
            "RTS");
  }
  void close() {
    for (ibv_qp* qp : qps) require(ibv_destroy_qp(qp) == 0, "ibv_destroy_qp");
    require(ibv_destroy_cq(cq) == 0 && ibv_destroy_comp_channel(channel) == 0, "ibv_destroy_cq");
    require(ibv_dereg_mr(source_mr) == 0 && ibv_dereg_mr(destination_mr) == 0, "ibv_dereg_mr");
    require(ibv_dealloc_pd(pd) == 0 && ibv_close_device(context) == 0, "ibv_close_device");
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::string end = argc > 1 ? argv[1] : "";
  const auto slash = end.find('/');
  if (slash == std::string::npos) {
    std::fprintf(stderr, "usage: verbs_stress DEVICE/PORT [MESSAGES]\n");
    return 2;
  }
  static Stress stress;
  stress.wanted = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 20'000;
  stress.open(end.substr(0, slash), static_cast<std::uint8_t>(std::stoi(end.substr(slash + 1))));
  std::vector<std::thread> threads;
  for (int i = 0; i < kSenders; ++i) threads.emplace_back([] { stress.send(); });
  for (int i = 0; i < kPollers; ++i)
    threads.emplace_back([] {
      while (!stress.finished()) stress.poll_some();
    });
  threads.emplace_back([] { stress.sleep_on_channel(); });
  threads.emplace_back([] { stress.change_memory(); });
  for (std::thread& thread : threads) thread.join();
  require(stress.sum == stress.wanted * (stress.wanted - 1), "a message is missing, or came twice");
  stress.close();
  std::printf("%llu messages each way\n", static_cast<unsigned long long>(stress.wanted));
}
