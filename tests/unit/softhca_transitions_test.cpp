// Which attributes a queue pair's transitions need and allow.
#include <gtest/gtest.h>

#include "verbs/softhca/transitions.hpp"

namespace fabric::softhca {
namespace {

constexpr int kRcInit = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
constexpr int kRcRtr = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                       IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
constexpr int kRcRts =
    IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;

TEST(Transitions, TheUsualWay) {
  EXPECT_TRUE(transition_allowed(IBV_QPT_RC, IBV_QPS_RESET, IBV_QPS_INIT, IBV_QP_STATE | kRcInit));
  EXPECT_TRUE(transition_allowed(IBV_QPT_RC, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QP_STATE | kRcRtr));
  EXPECT_TRUE(transition_allowed(IBV_QPT_RC, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QP_STATE | kRcRts));
  EXPECT_TRUE(transition_allowed(IBV_QPT_UC, IBV_QPS_INIT, IBV_QPS_RTR,
                                 IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN));
  EXPECT_TRUE(transition_allowed(IBV_QPT_UC, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QP_SQ_PSN));
  EXPECT_TRUE(transition_allowed(IBV_QPT_UD, IBV_QPS_RESET, IBV_QPS_INIT,
                                 IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY));
  EXPECT_TRUE(transition_allowed(IBV_QPT_UD, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QP_STATE));
  EXPECT_TRUE(transition_allowed(IBV_QPT_UD, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QP_SQ_PSN));
}

TEST(Transitions, EveryRequiredAttributeIsMissed) {
  for (int bit = 1; bit <= IBV_QP_DEST_QPN; bit <<= 1) {
    if ((kRcInit & bit) != 0) {
      EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_RESET, IBV_QPS_INIT, kRcInit & ~bit)) << bit;
    }
    if ((kRcRtr & bit) != 0) {
      EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_INIT, IBV_QPS_RTR, kRcRtr & ~bit)) << bit;
    }
    if ((kRcRts & bit) != 0) {
      EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_RTR, IBV_QPS_RTS, kRcRts & ~bit)) << bit;
    }
  }
}

TEST(Transitions, WhatDoesNotBelongIsRefused) {
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_RESET, IBV_QPS_INIT, kRcInit | IBV_QP_SQ_PSN));
  EXPECT_FALSE(transition_allowed(IBV_QPT_UD, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QP_AV));
  EXPECT_FALSE(transition_allowed(IBV_QPT_UC, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QP_SQ_PSN | IBV_QP_TIMEOUT));
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_RTS, IBV_QPS_RTS, IBV_QP_PORT));
}

TEST(Transitions, AlwaysToErrorAndReset) {
  for (const auto from : {IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_SQD, IBV_QPS_SQE, IBV_QPS_ERR}) {
    EXPECT_TRUE(transition_allowed(IBV_QPT_RC, from, IBV_QPS_ERR, IBV_QP_STATE)) << from;
    EXPECT_TRUE(transition_allowed(IBV_QPT_RC, from, IBV_QPS_RESET, IBV_QP_STATE)) << from;
  }
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_RESET, IBV_QPS_ERR, IBV_QP_STATE));
}

TEST(Transitions, NoShortcuts) {
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_RESET, IBV_QPS_RTR, kRcRtr));
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_INIT, IBV_QPS_RTS, kRcRts));
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_ERR, IBV_QPS_RTS, 0));
  EXPECT_FALSE(transition_allowed(IBV_QPT_RC, IBV_QPS_SQE, IBV_QPS_RTS, 0));  // RC has no SQE
  EXPECT_TRUE(transition_allowed(IBV_QPT_UD, IBV_QPS_SQE, IBV_QPS_RTS, 0));
}

}  // namespace
}  // namespace fabric::softhca
