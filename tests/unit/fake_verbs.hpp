// Verbs within one process, for tests that decide what a cable does to each message: reliable queue pairs
// joined in pairs, completion queues with channels, and faults. The functions of libibverbs that the code
// under test calls are defined here and so go before the library's; include this in one file of a program.
//
// As on an adapter: a message takes the receiver's first buffer, or waits for one; completions of one queue
// are in order; unsignaled successes tell nobody; the first failure of a queue pair puts it into the error
// state and flushes what is left.
#pragma once

#include <fcntl.h>
#include <infiniband/verbs.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace fabric::fake {

inline std::recursive_mutex mutex;

struct Channel : ibv_comp_channel {
  std::deque<ibv_cq*> events;
};
struct Queue : ibv_cq {
  std::deque<ibv_wc> completions;
  bool armed = false;
};

inline void complete(ibv_cq* cq, std::uint64_t id, ibv_wc_status status, ibv_wc_opcode opcode,
                     std::uint32_t length) {
  auto& queue = *static_cast<Queue*>(cq);
  ibv_wc completion{};
  completion.wr_id = id;
  completion.status = status;
  completion.opcode = opcode;
  completion.byte_len = length;
  queue.completions.push_back(completion);
  if (!queue.armed || queue.channel == nullptr) return;
  queue.armed = false;
  static_cast<Channel*>(queue.channel)->events.push_back(&queue);
  const std::uint64_t one = 1;
  [[maybe_unused]] auto n = write(queue.channel->fd, &one, sizeof one);
}

/// What a cable does to the messages of one direction.
struct Fault {
  bool dead = false;
  /// While dead: so many more arrive although nobody hears of it (lost acknowledgements); what follows is
  /// lost.
  unsigned unheard = 0;
};

struct QueuePair : ibv_qp {
  struct Send {
    std::uint64_t id;
    bool signaled, write;
    std::vector<std::byte> bytes;
  };
  struct Receive {
    std::uint64_t id;
    std::byte* buffer;
    std::size_t size;
  };
  QueuePair* peer = nullptr;
  Fault fault;
  bool error = false;
  bool hold = false;  ///< messages stay in the send queue
  std::deque<Send> sends;
  std::deque<Receive> receives;
  std::uint64_t delivered = 0;

  /// Moves what can be moved. Under `mutex`.
  void progress() {
    while (!sends.empty() && !error && !hold) {
      Send& send = sends.front();
      const bool arrives = !fault.dead || fault.unheard > 0;
      if (arrives && !peer->error) {
        if (!send.write) {
          if (peer->receives.empty()) return;  // receiver not ready: tried again for ever
          const Receive receive = peer->receives.front();
          peer->receives.pop_front();
          std::copy_n(send.bytes.begin(), std::min(send.bytes.size(), receive.size), receive.buffer);
          complete(peer->recv_cq, receive.id, IBV_WC_SUCCESS, IBV_WC_RECV,
                   static_cast<std::uint32_t>(send.bytes.size()));
          ++delivered;
        }
      }
      if (fault.dead || peer->error) {
        if (fault.unheard > 0 && !peer->error) {
          // Delivered, not acknowledged: the work request stays, and so do the later ones.
          --fault.unheard;
          unheard.push_back(std::move(send));
          sends.pop_front();
          continue;
        }
        return;  // lost on the cable: the retries run until fail()
      }
      if (send.signaled) complete(send_cq, send.id, IBV_WC_SUCCESS, IBV_WC_SEND, 0);
      sends.pop_front();
    }
  }
  std::deque<Send> unheard;

  /// The retries are used up (RETRY_EXC), or the queue pair was moved to the error state (FLUSH).
  void fail(ibv_wc_status first) {
    if (error) return;
    error = true;
    for (auto* list : {&unheard, &sends}) {
      for (const Send& send : *list) {
        complete(send_cq, send.id, first, IBV_WC_SEND, 0);
        first = IBV_WC_WR_FLUSH_ERR;
      }
      list->clear();
    }
    for (const Receive& receive : receives)
      complete(recv_cq, receive.id, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0);
    receives.clear();
  }
};

inline int poll_cq(ibv_cq* cq, int entries, ibv_wc* out) {
  const std::lock_guard lock(mutex);
  auto& queue = static_cast<Queue*>(cq)->completions;
  int n = 0;
  for (; n < entries && !queue.empty(); ++n) {
    out[n] = queue.front();
    queue.pop_front();
  }
  return n;
}
inline int req_notify_cq(ibv_cq* cq, int) {
  const std::lock_guard lock(mutex);
  static_cast<Queue*>(cq)->armed = true;
  return 0;
}
inline int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr**) {
  const std::lock_guard lock(mutex);
  auto& pair = *static_cast<QueuePair*>(qp);
  for (; wr != nullptr; wr = wr->next) {
    QueuePair::Send send{
        wr->wr_id, (wr->send_flags & IBV_SEND_SIGNALED) != 0, wr->opcode == IBV_WR_RDMA_WRITE, {}};
    for (int i = 0; i < wr->num_sge; ++i) {
      const auto* from = reinterpret_cast<const std::byte*>(wr->sg_list[i].addr);
      send.bytes.insert(send.bytes.end(), from, from + wr->sg_list[i].length);
    }
    if (pair.error)
      complete(pair.send_cq, send.id, IBV_WC_WR_FLUSH_ERR, IBV_WC_SEND, 0);
    else
      pair.sends.push_back(std::move(send));
  }
  pair.progress();
  return 0;
}
inline int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr**) {
  const std::lock_guard lock(mutex);
  auto& pair = *static_cast<QueuePair*>(qp);
  for (; wr != nullptr; wr = wr->next) {
    if (pair.error)
      complete(pair.recv_cq, wr->wr_id, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0);
    else
      pair.receives.push_back(
          {wr->wr_id, reinterpret_cast<std::byte*>(wr->sg_list->addr), wr->sg_list->length});
  }
  if (pair.peer != nullptr) pair.peer->progress();
  return 0;
}

/// An adapter: all objects belong to it and live as long.
struct Adapter {
  Adapter() {
    context.ops.poll_cq = poll_cq;
    context.ops.req_notify_cq = req_notify_cq;
    context.ops.post_send = post_send;
    context.ops.post_recv = post_recv;
    pd.context = &context;
  }
  QueuePair* make_pair(ibv_cq* cq) {
    pairs.push_back(std::make_unique<QueuePair>());
    QueuePair* pair = pairs.back().get();
    pair->context = &context;
    pair->send_cq = pair->recv_cq = cq;
    return pair;
  }
  ibv_context context{};
  ibv_pd pd{};
  std::vector<std::unique_ptr<QueuePair>> pairs;
};

inline void join(QueuePair* a, QueuePair* b) {
  a->peer = b;
  b->peer = a;
}

}  // namespace fabric::fake

// The functions of libibverbs, in their real signatures.
#undef ibv_reg_mr
extern "C" {
inline __attribute__((used)) ibv_comp_channel* ibv_create_comp_channel(ibv_context* context) {
  auto* channel = new fabric::fake::Channel();
  channel->context = context;
  channel->fd = eventfd(0, EFD_CLOEXEC);
  return channel;
}
inline __attribute__((used)) int ibv_destroy_comp_channel(ibv_comp_channel* channel) {
  close(channel->fd);
  delete static_cast<fabric::fake::Channel*>(channel);
  return 0;
}
inline __attribute__((used)) ibv_cq* ibv_create_cq(ibv_context* context, int, void*,
                                                   ibv_comp_channel* channel, int) {
  auto* queue = new fabric::fake::Queue();
  queue->context = context;
  queue->channel = channel;
  return queue;
}
inline __attribute__((used)) int ibv_destroy_cq(ibv_cq* cq) {
  delete static_cast<fabric::fake::Queue*>(cq);
  return 0;
}
inline __attribute__((used)) ibv_mr* ibv_reg_mr(ibv_pd* pd, void* address, size_t length, int) {
  auto* region = new ibv_mr();
  region->pd = pd;
  region->addr = address;
  region->length = length;
  return region;
}
inline __attribute__((used)) int ibv_dereg_mr(ibv_mr* region) {
  delete region;
  return 0;
}
inline __attribute__((used)) int ibv_modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int) {
  const std::lock_guard lock(fabric::fake::mutex);
  if (attributes->qp_state == IBV_QPS_ERR)
    static_cast<fabric::fake::QueuePair*>(qp)->fail(IBV_WC_WR_FLUSH_ERR);
  return 0;
}
inline __attribute__((used)) int ibv_get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void**) {
  const std::lock_guard lock(fabric::fake::mutex);
  auto& events = static_cast<fabric::fake::Channel*>(channel)->events;
  if (events.empty()) {
    errno = EAGAIN;
    return -1;
  }
  *cq = events.front();
  events.pop_front();
  if (events.empty()) {
    std::uint64_t value;
    [[maybe_unused]] auto n = read(channel->fd, &value, sizeof value);
  }
  return 0;
}
inline __attribute__((used)) void ibv_ack_cq_events(ibv_cq*, unsigned) {}
}
