#include "fabricd/state.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>

namespace fabric::daemon {
namespace {

class StateFile : public testing::Test {
 protected:
  StateFile() {
    char name[] = "/tmp/fabric-state-XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~StateFile() override { std::filesystem::remove_all(directory_); }

  std::string read(const std::string& name) const {
    std::ifstream file(directory_ / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& text) const { std::ofstream(directory_ / "state.json") << text; }

  std::filesystem::path directory_;
};

State example() {
  return {7, {3, {{Guid(0xA1), HostIndex(2)}, {Guid(0xFFFF0000FFFF0001), HostIndex(1)}}}};
}

TEST_F(StateFile, ComesBackAsItWasSaved) {
  const StateDirectory state(directory_ / "deep" / "er");
  EXPECT_EQ(state.load().starts, 0u);
  state.save(example());
  const State again = state.load();
  EXPECT_EQ(again.starts, 7u);
  EXPECT_EQ(again.lids.version, 3u);
  EXPECT_EQ(again.lids.entries, example().lids.entries);
  EXPECT_FALSE(again.drained);
  State drained = example();
  drained.drained = true;
  EXPECT_TRUE(decode_state(encode_state(drained)).drained);
}

TEST_F(StateFile, AStartIsAboveAllBefore) {
  const auto now = std::chrono::sys_days(std::chrono::year(2026) / 11 / 25);
  EXPECT_EQ(next_start(7, now), 8u);
  // Without a file: above what a host that began the same way can have reached by then.
  const std::uint32_t first = next_start(0, now);
  EXPECT_EQ(next_start(0, now + std::chrono::seconds(1)), first + 4);
  EXPECT_GT(first, 4u * 86400 * 365 * 6);
  EXPECT_EQ(next_start(0, std::chrono::system_clock::time_point()), 1u);  // a clock that stands at 1970
}

TEST_F(StateFile, DamageIsReportedAndKeptAside) {
  const StateDirectory state(directory_);
  for (const std::string text :
       {"", "{", "[]", "null", "{\"schema\":2,\"starts\":1,\"lids\":{\"version\":1,\"entries\":[]}}",
        "{\"schema\":1,\"starts\":-1,\"lids\":{\"version\":1,\"entries\":[]}}",
        "{\"schema\":1,\"starts\":1,\"lids\":{\"version\":1,\"entries\":[{\"host\":\"0x1\",\"index\":0}]}}",
        "{\"schema\":1,\"starts\":1,\"lids\":{\"version\":1,\"entries\":[{\"host\":\"1\",\"index\":1}]}}",
        "{\"schema\":1,\"starts\":1,\"lids\":{\"version\":1,\"entries\":[{\"host\":\"0x1\",\"indexc:2},{"
        "fhost\":"
        "\"0x2\",\"index\":1}]}}",
        "{\"schema\":1,\"starts\":1,\"lids\":{\"version\":1,\"entries\":[{\"host\":\"0x1\",\"index\":1},"
        "{\"host\":\"0x2\",\"index\":1}]}}",
        "{\"schema\":1,\"starts\":1,\"lids\":{\"version\":1,\"entries\":[{\"host\":\"0x1\",\"index\":1},"
        "{\"host\":\"0x1\",\"index\":2}]}}"}) {
    write(text);
    EXPECT_THROW((void)state.load(), StateError) << text;
    EXPECT_EQ(read("state.json.bad"), text);
    EXPECT_EQ(state.load().starts, 0u);  // it is out of the way
  }
}

TEST_F(StateFile, NoPrefixOfAFileIsTakenForAWholeOne) {
  const std::string whole = encode_state(example());
  ASSERT_EQ(decode_state(whole).starts, 7u);
  for (std::size_t length = 0; length + 1 < whole.size(); ++length) {
    EXPECT_ANY_THROW(decode_state(whole.substr(0, length))) << length;
  }
}

TEST_F(StateFile, RandomDamageNeverMakesABadTable) {
  const auto seed = std::getenv("FABRIC_SEED") ? std::strtoul(std::getenv("FABRIC_SEED"), nullptr, 10)
                                               : std::random_device{}();
  std::mt19937 random(static_cast<std::mt19937::result_type>(seed));
  const std::string whole = encode_state(example());
  for (int i = 0; i < 20000; ++i) {
    std::string text = whole;
    for (unsigned n = 1 + random() % 3; n > 0; --n)
      text[random() % text.size()] = static_cast<char>(random());
    try {
      const State state = decode_state(text);
      const auto& entries = state.lids.entries;
      // Two blanks in the right places make one entry of two, whose keys come twice, as JSON allows.
      ASSERT_TRUE(entries.size() == 1 || entries.size() == 2) << "FABRIC_SEED=" << seed;
      if (entries.size() < 2) continue;
      ASSERT_NE(entries[0].index, entries[1].index) << "FABRIC_SEED=" << seed;
      ASSERT_LT(entries[0].host, entries[1].host) << "FABRIC_SEED=" << seed;
    } catch (const std::exception&) {
    }
  }
}

TEST_F(StateFile, AFullDiskKeepsWhatWasThere) {
  const StateDirectory state(directory_);
  state.save(example());
  // A device that is always full stands where the temporary file is to be written.
  std::filesystem::create_symlink("/dev/full", directory_ / "state.json.new");
  State next = example();
  next.starts = 8;
  try {
    state.save(next);
    FAIL() << "saved to a full disk";
  } catch (const StateError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("No space left on device"));
  }
  EXPECT_EQ(state.load().starts, 7u);
}

TEST_F(StateFile, ADirectoryThatCannotBeMadeIsReported) {
  write("a file");
  EXPECT_THROW(StateDirectory(directory_ / "state.json").save(example()), StateError);
}

}  // namespace
}  // namespace fabric::daemon
