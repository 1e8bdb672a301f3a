// Requests on the control socket: any line is a request or a sentence.
//
// Subjects: fabricd/control/request.cpp
#include "fabricd/control/request.hpp"
#include "tests/fuzz/input.hpp"

using namespace fabric::daemon;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  try {
    const Request request = parse_request(line);
    FUZZ_REQUIRE(!request.object.empty());
    for (const auto& member : request.args) {
      const std::string_view name(member.key().data(), member.key().size());
      try {
        (void)request.text(name);
      } catch (const RequestError&) {
      }
      try {
        const auto number = request.number(name, 5, 500);
        FUZZ_REQUIRE(!number || (*number >= 5 && *number <= 500));
      } catch (const RequestError&) {
      }
      try {
        (void)request.flag(name);
      } catch (const RequestError&) {
      }
    }
    request.only({"from", "to"});
  } catch (const RequestError& error) {
    // What is wrong with a request is answered in one line.
    const std::string answer = encode_error(error.what());
    FUZZ_REQUIRE(answer.find('\n') == answer.size() - 1);
  }
  return 0;
}
