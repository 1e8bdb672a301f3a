#include "tools/fabricctl/table.hpp"

#include <algorithm>

namespace fabric::tools {

std::string paint(std::string_view text, Colour colour, bool coloured) {
  const char* code = nullptr;
  switch (colour) {
    case Colour::plain:
      break;
    case Colour::good:
      code = "\033[32m";
      break;
    case Colour::bad:
      code = "\033[31m";
      break;
    case Colour::dim:
      code = "\033[2m";
      break;
    case Colour::bold:
      code = "\033[1m";
      break;
  }
  if (!coloured || code == nullptr || text.empty()) return std::string(text);
  return std::string(code).append(text).append("\033[0m");
}

std::size_t display_width(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

Table::Table(std::vector<std::string> headings) : headings_(std::move(headings)) {
  for (std::string& heading : headings_) {
    right_.push_back(heading.starts_with('>'));
    if (right_.back()) heading.erase(0, 1);
  }
}

void Table::row(std::vector<Cell> cells) {
  cells.resize(headings_.size(), Cell(""));
  rows_.push_back(std::move(cells));
}

std::string Table::render(bool coloured) const {
  std::vector<std::size_t> widths;
  for (std::size_t column = 0; column < headings_.size(); ++column) {
    std::size_t width = display_width(headings_[column]);
    for (const auto& row : rows_) width = std::max(width, display_width(row[column].text));
    widths.push_back(width);
  }
  std::string out;
  const auto line = [&](const std::vector<Cell>& cells) {
    std::string text;
    for (std::size_t column = 0; column < cells.size(); ++column) {
      const Cell& cell = cells[column];
      const std::string space(widths[column] - display_width(cell.text), ' ');
      if (right_[column]) text += space;
      text += paint(cell.text, cell.colour, coloured);
      if (column + 1 == cells.size()) break;
      if (!right_[column]) text += space;
      text += "  ";
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line({headings_.begin(), headings_.end()});
  for (const auto& row : rows_) line(row);
  return out;
}

}  // namespace fabric::tools
