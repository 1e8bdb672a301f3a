// Numbers with a unit on fabric-lab's command line.
#include <gtest/gtest.h>

#include "tools/lab/error.hpp"
#include "tools/lab/quantity.hpp"

namespace fabric::tools::lab {
namespace {

TEST(Quantity, Units) {
  EXPECT_EQ(parse_duration("50us").count(), 50);
  EXPECT_EQ(parse_duration("1.5ms").count(), 1500);
  EXPECT_EQ(parse_duration("2s").count(), 2'000'000);
  EXPECT_EQ(parse_rate("10Gb"), 10'000u);
  EXPECT_EQ(parse_rate("2.5Gb"), 2'500u);
  EXPECT_EQ(parse_rate("100Mb"), 100u);
  EXPECT_EQ(parse_share("0.1%"), 1000u);
  EXPECT_EQ(parse_share("100%"), 1'000'000u);
  EXPECT_EQ(parse_share("5ppm"), 5u);
}

TEST(Quantity, WhatIsNoneIsRefused) {
  for (const char* text : {"", "us", "50", "50 us", "5m", "-1us", "1e300s", "nanus", "2000s"})
    EXPECT_THROW(parse_duration(text), Error) << text;
  for (const char* text : {"0Gb", "10", "10GB", "0.1Mb"}) EXPECT_THROW(parse_rate(text), Error) << text;
  for (const char* text : {"101%", "-1%", "1", "1000001ppm"}) EXPECT_THROW(parse_share(text), Error) << text;
}

}  // namespace
}  // namespace fabric::tools::lab
