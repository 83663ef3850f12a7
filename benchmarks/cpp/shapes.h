// The layer shapes, the rows and the patterns of benchmarks/shapes.txt.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace restorelcc::bench {

struct Shape {
  std::string model, layer;
  int64_t outputs, inputs;  // N, K
};

struct ShapesFile {
  std::vector<Shape> shapes;
  std::vector<int64_t> rows;
  std::vector<std::string> patterns;
};

// False: *error names the file and the line.
bool read_shapes(const std::string& path, ShapesFile* file, std::string* error);

}  // namespace restorelcc::bench
