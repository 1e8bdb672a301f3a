#include <gtest/gtest.h>

#include "tools/lab/flow_record.hpp"

namespace fabric::tools::lab {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr Nanoseconds kInterval = milliseconds(1);
constexpr Nanoseconds kLatency = microseconds(50);

/// `count` packets, one each millisecond, and their arrivals.
FlowRecord clean(std::uint32_t count) {
  FlowRecord record;
  for (std::uint32_t i = 0; i < count; ++i) {
    record.sent.push_back(milliseconds(i));
    record.arrivals.push_back({i, milliseconds(i) + kLatency});
  }
  return record;
}

TEST(LabFlowRecord, CleanFlow) {
  const FlowResult result = evaluate(clean(100), kInterval);
  EXPECT_EQ(result.sent, 100u);
  EXPECT_EQ(result.lost, 0u);
  EXPECT_EQ(result.duplicated, 0u);
  EXPECT_EQ(result.reordered, 0u);
  EXPECT_EQ(result.longest_gap, kInterval);
}

TEST(LabFlowRecord, LossLeavesAGap) {
  FlowRecord record = clean(100);
  record.arrivals.erase(record.arrivals.begin() + 10, record.arrivals.begin() + 15);
  const FlowResult result = evaluate(record, kInterval);
  EXPECT_EQ(result.lost, 5u);
  EXPECT_EQ(result.reordered, 0u);
  EXPECT_EQ(result.longest_gap, milliseconds(6));
}

TEST(LabFlowRecord, DelayLeavesAGapWithoutLoss) {
  FlowRecord record = clean(100);
  for (std::uint32_t i = 10; i < 15; ++i) record.arrivals[i].at = record.arrivals[15].at;
  const FlowResult result = evaluate(record, kInterval);
  EXPECT_EQ(result.lost, 0u);
  EXPECT_EQ(result.longest_gap, milliseconds(6));
}

TEST(LabFlowRecord, PauseOfTheSenderIsNoGap) {
  FlowRecord record = clean(20);
  for (std::uint32_t i = 10; i < 20; ++i) {
    record.sent[i] += milliseconds(30);
    record.arrivals[i].at += milliseconds(30);
  }
  EXPECT_EQ(evaluate(record, kInterval).longest_gap, kInterval + kLatency);
}

TEST(LabFlowRecord, DuplicatesAndReordering) {
  FlowRecord record = clean(10);
  record.arrivals.push_back({9, milliseconds(11)});
  record.arrivals.push_back({3, milliseconds(11)});
  std::swap(record.arrivals[4].sequence, record.arrivals[5].sequence);
  const FlowResult result = evaluate(record, kInterval);
  EXPECT_EQ(result.duplicated, 2u);
  EXPECT_EQ(result.reordered, 1u);
  EXPECT_EQ(result.lost, 0u);
}

TEST(LabFlowRecord, NothingArrived) {
  FlowRecord record = clean(10);
  record.arrivals.clear();
  EXPECT_EQ(evaluate(record, kInterval).lost, 10u);
}

TEST(LabFlowRecord, Percentile) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 1), 100);
  EXPECT_EQ(percentile({7}, 0.5), 7);
  EXPECT_EQ(percentile({}, 0.5), 0);
}

}  // namespace
}  // namespace fabric::tools::lab
