// iproute2's manners with words: any unambiguous abbreviation is the word.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fabric::tools {

/// Wrong usage: a sentence that says what is right.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The one of `words` that `typed` is, or is the beginning of. `kind` is for messages: "object". Throws
/// UsageError where there is none, or more than one.
std::string complete_word(std::string_view typed, const std::vector<std::string>& words,
                          std::string_view kind);

}  // namespace fabric::tools
