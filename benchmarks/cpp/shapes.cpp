#include "shapes.h"

#include <fstream>
#include <sstream>

namespace restorelcc::bench {
namespace {

// 2:4, or a share of pruned weights in (0, 1).
bool is_pattern(const std::string& text) {
  if (text == "2:4") return true;
  std::istringstream stream(text);
  double share = 0;
  return stream >> share && stream.eof() && share > 0 && share < 1;
}

bool read_line(const std::string& line, ShapesFile* file) {
  std::istringstream words(line);
  std::string kind, word;
  if (!(words >> kind) || kind[0] == '#') return true;
  if (kind == "shape") {
    Shape shape;
    if (!(words >> shape.model >> shape.layer >> shape.outputs >> shape.inputs) || words >> word) return false;
    file->shapes.push_back(shape);
    return shape.outputs > 0 && shape.inputs > 0;
  }
  if (kind == "rows") {
    int64_t rows = 0;
    while (words >> rows) file->rows.push_back(rows);
    return words.eof();
  }
  if (kind != "pattern") return false;
  while (words >> word) {
    if (!is_pattern(word)) return false;
    file->patterns.push_back(word);
  }
  return true;
}

}  // namespace

bool read_shapes(const std::string& path, ShapesFile* file, std::string* error) {
  std::ifstream stream(path);
  if (!stream) {
    *error = "cannot read the shapes file '" + path + "'";
    return false;
  }
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (!read_line(line, file)) {
      *error = path + ":" + std::to_string(number) + ": not understood: " + line;
      return false;
    }
  }
  if (file->shapes.empty() || file->rows.empty() || file->patterns.empty()) {
    *error = path + " lacks shapes, rows or patterns";
    return false;
  }
  return true;
}

}  // namespace restorelcc::bench
