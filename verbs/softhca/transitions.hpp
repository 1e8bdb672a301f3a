// Which attributes a queue pair's state transition needs and allows.
#pragma once

#include <infiniband/verbs.h>

namespace fabric::softhca {

/// Whether ibv_modify_qp(from -> to) with these attributes is allowed: InfiniBand Architecture Specification
/// 10.3.1 and tables 91-93 of 11.2.5.2 (modify queue pair), as the Linux kernel applies them. `mask` is of
/// enum ibv_qp_attr_mask, with IBV_QP_STATE and IBV_QP_CUR_STATE taken away or not.
bool transition_allowed(ibv_qp_type type, ibv_qp_state from, ibv_qp_state to, int mask);

}  // namespace fabric::softhca
