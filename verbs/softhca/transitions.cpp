#include "verbs/softhca/transitions.hpp"

namespace fabric::softhca {
namespace {

struct Masks {
  int required = 0;
  int optional = 0;
};

bool reliable(ibv_qp_type type) {
  return type == IBV_QPT_RC;
}
bool connected(ibv_qp_type type) {
  return type == IBV_QPT_RC || type == IBV_QPT_UC;
}

Masks init_masks(ibv_qp_type type) {
  if (connected(type)) return {IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, 0};
  return {IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY, 0};
}

Masks receive_masks(ibv_qp_type type) {
  if (!connected(type)) return {0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY};
  Masks masks{IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN,
              IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX};
  if (reliable(type)) masks.required |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  return masks;
}

Masks send_masks(ibv_qp_type type) {
  if (!connected(type)) return {IBV_QP_SQ_PSN, IBV_QP_QKEY};
  Masks masks{IBV_QP_SQ_PSN, IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PATH_MIG_STATE};
  if (reliable(type)) {
    masks.required |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    masks.optional |= IBV_QP_MIN_RNR_TIMER;
  }
  return masks;
}

Masks running_masks(ibv_qp_type type) {
  if (!connected(type)) return {0, IBV_QP_QKEY};
  Masks masks{0, IBV_QP_ACCESS_FLAGS | IBV_QP_ALT_PATH | IBV_QP_PATH_MIG_STATE};
  if (reliable(type)) masks.optional |= IBV_QP_MIN_RNR_TIMER;
  return masks;
}

Masks drained_masks(ibv_qp_type type) {
  if (!connected(type)) return {0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY};
  Masks masks{0,
              IBV_QP_AV | IBV_QP_PKEY_INDEX | IBV_QP_ACCESS_FLAGS | IBV_QP_ALT_PATH | IBV_QP_PATH_MIG_STATE};
  if (reliable(type))
    masks.optional |= IBV_QP_PORT | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                      IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  return masks;
}

/// False where there is no such transition.
bool masks_of(ibv_qp_type type, ibv_qp_state from, ibv_qp_state to, Masks& masks) {
  masks = {};
  if (to == IBV_QPS_RESET || to == IBV_QPS_ERR) return from != IBV_QPS_RESET || to == IBV_QPS_RESET;
  switch (from) {
    case IBV_QPS_RESET:
      if (to != IBV_QPS_INIT) return false;
      masks = init_masks(type);
      return true;
    case IBV_QPS_INIT:
      if (to == IBV_QPS_INIT) {
        masks.optional = init_masks(type).required;
        return true;
      }
      if (to != IBV_QPS_RTR) return false;
      masks = receive_masks(type);
      return true;
    case IBV_QPS_RTR:
      if (to != IBV_QPS_RTS) return false;
      masks = send_masks(type);
      return true;
    case IBV_QPS_RTS:
      if (to == IBV_QPS_RTS) {
        masks = running_masks(type);
        return true;
      }
      if (to != IBV_QPS_SQD) return false;
      masks.optional = IBV_QP_EN_SQD_ASYNC_NOTIFY;
      return true;
    case IBV_QPS_SQD:
      if (to != IBV_QPS_RTS && to != IBV_QPS_SQD) return false;
      masks = to == IBV_QPS_RTS ? running_masks(type) : drained_masks(type);
      return true;
    case IBV_QPS_SQE:
      if (to != IBV_QPS_RTS || reliable(type)) return false;
      masks = running_masks(type);
      return true;
    case IBV_QPS_ERR:
    case IBV_QPS_UNKNOWN:
      return false;
  }
  return false;
}

}  // namespace

bool transition_allowed(ibv_qp_type type, ibv_qp_state from, ibv_qp_state to, int mask) {
  Masks masks;
  if (!masks_of(type, from, to, masks)) return false;
  mask &= ~(IBV_QP_STATE | IBV_QP_CUR_STATE);
  return (mask & masks.required) == masks.required && (mask & ~(masks.required | masks.optional)) == 0;
}

}  // namespace fabric::softhca
