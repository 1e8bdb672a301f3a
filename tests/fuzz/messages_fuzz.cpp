// The codec of what neighbours' daemons say to each other: what decodes is within all limits, and encodes to
// the same bytes again.
#include "routing/messages.hpp"
#include "tests/fuzz/input.hpp"

using namespace fabric;
using namespace fabric::routing;

namespace {

void check(const Advertisement& advertisement) {
  FUZZ_REQUIRE(advertisement.sequence >= 1 && advertisement.sequence <= kMaxSequence);
  FUZZ_REQUIRE(advertisement.name.size() <= kMaxName && advertisement.links.size() <= kMaxLinks &&
               advertisement.prefixes.size() <= kMaxPrefixes);
  FUZZ_REQUIRE(advertisement.index <= kMaxHostIndex);
  for (const Link& link : advertisement.links) FUZZ_REQUIRE(link.cost >= 1 && link.cost <= kMaxCost);
  for (const Prefix& prefix : advertisement.prefixes) FUZZ_REQUIRE(prefix.length <= 128);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = fuzz::as_bytes({data, size});
  const auto same = [&](const std::vector<std::byte>& encoded) {
    return std::equal(encoded.begin(), encoded.end(), bytes.begin(), bytes.end());
  };
  if (const auto advertisement = decode_advertisement(bytes)) {
    check(*advertisement);
    FUZZ_REQUIRE(same(encode(*advertisement)));
    const auto key = decode_key(bytes);
    FUZZ_REQUIRE(key && key->origin == advertisement->origin && key->sequence == advertisement->sequence &&
                 key->incarnation == advertisement->incarnation);
  }
  (void)decode_key(bytes);
  if (const auto message = decode_message(bytes)) {
    FUZZ_REQUIRE(same(encode(*message)));
    if (const auto* part = std::get_if<LidTablePart>(&*message))
      FUZZ_REQUIRE(part->first + part->entries.size() <= part->total);
  }
  return 0;
}
