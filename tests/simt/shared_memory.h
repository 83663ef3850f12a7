// The shared memory of the block that runs: the dynamic part and the named arrays, redzones between them.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

class SharedMemory {
 public:
  void start_launch(size_t dynamic_bytes);
  void start_block();  // all arrays are poisoned with NaN
  void end_launch();
  bool redzones_intact() const;

  void* dynamic() const { return regions_[0].begin; }
  void* array(const char* file, int line, size_t bytes);  // nullptr: no room, or asked with another size
  bool holds(const void* pointer, size_t bytes) const;    // inside one array

 private:
  struct Region {
    unsigned char* begin;
    size_t bytes;
    const char* file;
    int line;
  };
  unsigned char* add(size_t bytes, const char* file, int line);

  std::vector<Region> regions_;  // [0] is the dynamic part
  size_t used_ = 0, array_bytes_ = 0;
};

SharedMemory& shared_memory();

}  // namespace simt
