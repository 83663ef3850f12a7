// restorelcc.json: what the rest of a packed model is (docs/format.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "restorelcc/params.h"

namespace restorelcc::model {

// A prunable matrix [rows, columns], by the name of its module.
struct Matrix {
  std::string name;
  int64_t rows = 0, columns = 0;
};

struct Record {
  std::string values;  // "bf16", "fp32", "fp16", "int8"
  std::vector<Matrix> packed, dense;
  bool has_head = false;
  Matrix head;                                // the LM head, packed as int8
  std::vector<std::vector<uint32_t>> joined;  // indices of `packed`; none stands in two of them
  std::vector<std::string> compensations;
  int64_t default_compensation = -1;  // index of compensations

  rlcc_dtype value_dtype() const;   // of the packed values, but for the head's
  const char* stored_type() const;  // of all that is not packed, as the file names it: "BF16"
};

// Refused where an entry is missing or not what it should be, and where format or version are others.
Status read_record(const std::string& path, Record* record);

}  // namespace restorelcc::model
