#include <gtest/gtest.h>

#include "tools/lab/cabling.hpp"
#include "tools/lab/error.hpp"

namespace fabric::tools::lab {
namespace {

std::string cable(const LabDescription& lab, std::size_t index) {
  return lab.to_string(lab.cables.at(index).first) + " " + lab.to_string(lab.cables.at(index).second);
}

TEST(LabCabling, RingJoinsPortTwoToThePortOneOfTheNext) {
  const LabDescription lab = ring(5);
  ASSERT_EQ(lab.hosts.size(), 5u);
  EXPECT_EQ(lab.hosts[4].name, "h5");
  EXPECT_EQ(lab.hosts[4].hcas, std::vector<unsigned>{2});
  ASSERT_EQ(lab.cables.size(), 5u);
  EXPECT_EQ(cable(lab, 0), "h1/2 h2/1");
  EXPECT_EQ(cable(lab, 4), "h5/2 h1/1");
}

TEST(LabCabling, RingOfTwoHasTwoCables) {
  ASSERT_EQ(ring(2).cables.size(), 2u);
  EXPECT_EQ(cable(ring(2), 0), "h1/2 h2/1");
  EXPECT_EQ(cable(ring(2), 1), "h2/2 h1/1");
}

TEST(LabCabling, ChainIsAnOpenRing) {
  EXPECT_EQ(chain(4).cables.size(), 3u);
  EXPECT_EQ(cable(chain(4), 2), "h3/2 h4/1");
}

TEST(LabCabling, NumberOfHosts) {
  for (const unsigned bad : {0u, kMaxHosts + 1}) {
    EXPECT_THROW(ring(bad), Error);
    EXPECT_THROW(chain(bad), Error);
  }
}

TEST(LabCabling, Distances) {
  const LabDescription lab = ring(5);
  EXPECT_EQ(distance(lab, 0, 0), 0u);
  EXPECT_EQ(distance(lab, 0, 1), 1u);
  EXPECT_EQ(distance(lab, 0, 2), 2u);
  EXPECT_EQ(distance(lab, 0, 3), 2u);
  EXPECT_EQ(distance(lab, 0, 1, 0), 4u);
  EXPECT_EQ(distance(lab, 0, 2, std::nullopt, 1), 3u);
  EXPECT_EQ(distance(chain(3), 0, 2, std::nullopt, 1), std::nullopt);
  EXPECT_EQ(distance(chain(3), 0, 2, 0), std::nullopt);
}

TEST(LabCabling, TextIsReadAsItWasWritten) {
  LabDescription lab = ring(3);
  lab.hosts[1].hcas = {2, 4};
  lab.cables[0].second = {1, 1, 3};
  EXPECT_EQ(to_json(softhca::parse_lab(to_json(lab))), to_json(lab));
  EXPECT_EQ(cable(softhca::parse_lab(to_json(lab)), 0), "h1/2 h2/1/3");
}

}  // namespace
}  // namespace fabric::tools::lab
