#include "tools/fabricctl/words.hpp"

#include <fmt/format.h>

namespace fabric::tools {

std::string complete_word(std::string_view typed, const std::vector<std::string>& words,
                          std::string_view kind) {
  std::vector<std::string> candidates;
  for (const std::string& word : words) {
    if (word == typed) return word;
    if (!typed.empty() && word.starts_with(typed)) candidates.push_back(word);
  }
  if (candidates.size() == 1) return candidates.front();
  if (candidates.empty()) {
    throw UsageError(fmt::format("unknown {} \"{}\"; there are: {}", kind, typed, fmt::join(words, ", ")));
  }
  throw UsageError(fmt::format("\"{}\" is ambiguous; it may be {}", typed, fmt::join(candidates, ", ")));
}

}  // namespace fabric::tools
