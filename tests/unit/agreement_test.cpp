#include "routing/agreement.hpp"

#include <gtest/gtest.h>

namespace fabric::routing {
namespace {

using Entries = std::vector<PortIndex>;
constexpr PortIndex kA{0}, kB{1};
const Agreement::Ports kBoth(3), kOnlyA(1);

TEST(Agreement, NothingIsUsedBeforeAllHaveAgreed) {
  Agreement agreement;
  agreement.propose({kNoPort, kNoPort, kA, kB}, kBoth);
  EXPECT_EQ(agreement.entries(), (Entries{kNoPort, kNoPort, kNoPort, kNoPort}));
  agreement.settle();
  EXPECT_EQ(agreement.entries(), (Entries{kNoPort, kNoPort, kA, kB}));
}

TEST(Agreement, WhatStaysTheSameGoesOnBeingUsed) {
  Agreement agreement;
  agreement.propose({kA, kB, kA, kB}, kBoth);
  agreement.settle();
  agreement.propose({kA, kA, kB, kB, kA}, kBoth);
  EXPECT_EQ(agreement.entries(), (Entries{kA, kNoPort, kNoPort, kB, kNoPort}));
  agreement.propose({kA, kB, kB, kA, kA}, kBoth);
  EXPECT_EQ(agreement.entries(), (Entries{kA, kNoPort, kNoPort, kNoPort, kNoPort}))
      << "an entry that was taken out does not come back by itself";
  agreement.settle();
  EXPECT_EQ(agreement.entries(), (Entries{kA, kB, kB, kA, kA}));
}

TEST(Agreement, ADeadPortGoesAtOnceAndComesBackByAgreement) {
  Agreement agreement;
  agreement.propose({kA, kB}, kBoth);
  agreement.settle();
  agreement.propose({kA, kB}, kOnlyA);
  EXPECT_EQ(agreement.entries(), (Entries{kA, kNoPort}));
  agreement.propose({kA, kB}, kBoth);
  EXPECT_EQ(agreement.entries(), (Entries{kA, kNoPort}));
  agreement.settle();
  EXPECT_EQ(agreement.entries(), (Entries{kA, kB}));
}

}  // namespace
}  // namespace fabric::routing
