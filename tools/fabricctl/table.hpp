// Aligned columns, and colour where somebody looks.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fabric::tools {

enum class Colour : unsigned char { plain, good, bad, dim, bold };

/// `text` in a colour, or as it is where `coloured` is false.
std::string paint(std::string_view text, Colour colour, bool coloured);

struct Cell {
  Cell(std::string words, Colour paint = Colour::plain) : text(std::move(words)), colour(paint) {}
  Cell(const char* words, Colour paint = Colour::plain) : text(words), colour(paint) {}
  std::string text;
  Colour colour;
};

/// A heading and rows; each column is as wide as its widest cell, the last one ends with its text.
class Table {
 public:
  /// A heading that begins with '>' is aligned right, without the '>'.
  explicit Table(std::vector<std::string> headings);
  /// Missing cells are empty.
  void row(std::vector<Cell> cells);
  [[nodiscard]] std::string render(bool coloured) const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<Cell>> rows_;
};

/// Columns that `text` takes on a terminal: its UTF-8 characters.
std::size_t display_width(std::string_view text);

}  // namespace fabric::tools
