// ibv_wr_*: work requests built by calls between ibv_wr_start and ibv_wr_complete. They are collected as
// classic requests and posted together; the addressing calls refer to the last one.
#include <infiniband/verbs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <vector>

#include "verbs/softhca/objects.hpp"

namespace fabric::softhca {

struct QueuePair::Batch {
  struct Entry {
    ibv_send_wr wr{};
    std::vector<ibv_sge> sges;
    std::vector<std::byte> inline_data;
  };
  SpinLock mutex;  ///< held from wr_start to wr_complete or wr_abort
  std::deque<Entry> entries;
};

void QueuePair::discard_batch() {
  delete batch;
  batch = nullptr;
}

namespace {

QueuePair& object_of(ibv_qp_ex* qp) {
  return *reinterpret_cast<QueuePair*>(qp);
}

QueuePair::Batch& batch_of(ibv_qp_ex* qp) {
  return *object_of(qp).batch;
}

ibv_send_wr& begin(ibv_qp_ex* qp, ibv_wr_opcode opcode) {
  ibv_send_wr& wr = batch_of(qp).entries.emplace_back().wr;
  wr.wr_id = qp->wr_id;
  wr.opcode = opcode;
  wr.send_flags = qp->wr_flags;
  return wr;
}

ibv_send_wr& begin_rdma(ibv_qp_ex* qp, ibv_wr_opcode opcode, std::uint32_t rkey, std::uint64_t address) {
  ibv_send_wr& wr = begin(qp, opcode);
  wr.wr.rdma.rkey = rkey;
  wr.wr.rdma.remote_addr = address;
  return wr;
}

void begin_atomic(ibv_qp_ex* qp, ibv_wr_opcode opcode, std::uint32_t rkey, std::uint64_t address,
                  std::uint64_t compare_add, std::uint64_t swap) {
  ibv_send_wr& wr = begin(qp, opcode);
  wr.wr.atomic.rkey = rkey;
  wr.wr.atomic.remote_addr = address;
  wr.wr.atomic.compare_add = compare_add;
  wr.wr.atomic.swap = swap;
}

void set_ud_address(ibv_qp_ex* qp, ibv_ah* ah, std::uint32_t remote_qpn, std::uint32_t remote_qkey) {
  batch_of(qp).entries.back().wr.wr.ud = {ah, remote_qpn, remote_qkey};
}

void set_sge_list(ibv_qp_ex* qp, std::size_t count, const ibv_sge* sges) {
  batch_of(qp).entries.back().sges.assign(sges, sges + count);
}

void set_inline_data_list(ibv_qp_ex* qp, std::size_t count, const ibv_data_buf* buffers) {
  QueuePair::Batch::Entry& entry = batch_of(qp).entries.back();
  for (std::size_t i = 0; i < count; ++i) {
    const auto* bytes = static_cast<const std::byte*>(buffers[i].addr);
    entry.inline_data.insert(entry.inline_data.end(), bytes, bytes + buffers[i].length);
  }
  entry.wr.send_flags |= IBV_SEND_INLINE;
}

void start(ibv_qp_ex* qp) {
  QueuePair::Batch& batch = batch_of(qp);
  batch.mutex.lock();
  batch.entries.clear();
}

void abort(ibv_qp_ex* qp) {
  batch_of(qp).mutex.unlock();
}

/// All of them are posted, or none.
int complete(ibv_qp_ex* qp) {
  QueuePair& object = object_of(qp);
  QueuePair::Batch& batch = *object.batch;
  ibv_send_wr* next = nullptr;
  for (auto entry = batch.entries.rbegin(); entry != batch.entries.rend(); ++entry) {
    if ((entry->wr.send_flags & IBV_SEND_INLINE) != 0)
      entry->sges.assign(1, {reinterpret_cast<std::uint64_t>(entry->inline_data.data()),
                             static_cast<std::uint32_t>(entry->inline_data.size()), 0});
    entry->wr.sg_list = entry->sges.data();
    entry->wr.num_sge = static_cast<int>(entry->sges.size());
    entry->wr.next = next;
    next = &entry->wr;
  }
  const int error = object.post_batch(next);
  batch.mutex.unlock();
  return error;
}

}  // namespace

void install_extended_posting(QueuePair& object, std::uint64_t operations) {
  ibv_qp_ex& qp = object.ibv;
  object.batch = new QueuePair::Batch;
  qp.wr_start = start;
  qp.wr_complete = complete;
  qp.wr_abort = abort;
  qp.wr_set_sge_list = set_sge_list;
  qp.wr_set_sge = [](ibv_qp_ex* q, std::uint32_t lkey, std::uint64_t address, std::uint32_t length) {
    const ibv_sge sge{address, length, lkey};
    set_sge_list(q, length == 0 ? 0 : 1, &sge);
  };
  qp.wr_set_inline_data_list = set_inline_data_list;
  qp.wr_set_inline_data = [](ibv_qp_ex* q, void* address, std::size_t length) {
    const ibv_data_buf buffer{address, length};
    set_inline_data_list(q, 1, &buffer);
  };
  if (object.created.qp_type == IBV_QPT_UD) qp.wr_set_ud_addr = set_ud_address;
  // Only what was asked for may be called.
  if ((operations & IBV_QP_EX_WITH_SEND) != 0) qp.wr_send = [](ibv_qp_ex* q) { begin(q, IBV_WR_SEND); };
  if ((operations & IBV_QP_EX_WITH_SEND_WITH_IMM) != 0)
    qp.wr_send_imm = [](ibv_qp_ex* q, __be32 data) { begin(q, IBV_WR_SEND_WITH_IMM).imm_data = data; };
  if ((operations & IBV_QP_EX_WITH_RDMA_WRITE) != 0)
    qp.wr_rdma_write = [](ibv_qp_ex* q, std::uint32_t rkey, std::uint64_t address) {
      begin_rdma(q, IBV_WR_RDMA_WRITE, rkey, address);
    };
  if ((operations & IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM) != 0)
    qp.wr_rdma_write_imm = [](ibv_qp_ex* q, std::uint32_t rkey, std::uint64_t address, __be32 data) {
      begin_rdma(q, IBV_WR_RDMA_WRITE_WITH_IMM, rkey, address).imm_data = data;
    };
  if ((operations & IBV_QP_EX_WITH_RDMA_READ) != 0)
    qp.wr_rdma_read = [](ibv_qp_ex* q, std::uint32_t rkey, std::uint64_t address) {
      begin_rdma(q, IBV_WR_RDMA_READ, rkey, address);
    };
  if ((operations & IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP) != 0)
    qp.wr_atomic_cmp_swp = [](ibv_qp_ex* q, std::uint32_t rkey, std::uint64_t address, std::uint64_t compare,
                              std::uint64_t swap) {
      begin_atomic(q, IBV_WR_ATOMIC_CMP_AND_SWP, rkey, address, compare, swap);
    };
  if ((operations & IBV_QP_EX_WITH_SEND_WITH_INV) != 0)
    qp.wr_send_inv = [](ibv_qp_ex* q, std::uint32_t rkey) {
      begin(q, IBV_WR_SEND_WITH_INV).invalidate_rkey = rkey;
    };
  if ((operations & IBV_QP_EX_WITH_LOCAL_INV) != 0)
    qp.wr_local_inv = [](ibv_qp_ex* q, std::uint32_t rkey) {
      begin(q, IBV_WR_LOCAL_INV).invalidate_rkey = rkey;
    };
  if ((operations & IBV_QP_EX_WITH_BIND_MW) != 0)
    qp.wr_bind_mw = [](ibv_qp_ex* q, ibv_mw* mw, std::uint32_t rkey, const ibv_mw_bind_info* info) {
      begin(q, IBV_WR_BIND_MW).bind_mw = {.mw = mw, .rkey = rkey, .bind_info = *info};
    };
  if ((operations & IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD) != 0)
    qp.wr_atomic_fetch_add = [](ibv_qp_ex* q, std::uint32_t rkey, std::uint64_t address,
                                std::uint64_t value) {
      begin_atomic(q, IBV_WR_ATOMIC_FETCH_AND_ADD, rkey, address, value, 0);
    };
}

}  // namespace fabric::softhca
