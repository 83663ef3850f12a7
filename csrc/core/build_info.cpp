#include "core/build_info.h"

#include <sstream>

#include "core/isa.h"
#include "restorelcc/restorelcc.h"

namespace restorelcc {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

// ["a", "b"]
std::string isa_list(bool (*included)(Isa)) {
  std::string list = "[";
  for (int i = 0; i < kIsaCount; ++i) {
    if (!included(static_cast<Isa>(i))) continue;
    list += list.size() > 1 ? ", \"" : "\"";
    list += isa_name(static_cast<Isa>(i));
    list += '"';
  }
  return list + "]";
}

// ["a", "b"] of "a b"
std::string word_list(const std::string& words) {
  std::istringstream stream(words);
  stream.exceptions(std::ios::badbit);  // as failure() of core/status.h
  std::string list, word;
  while (stream >> word) list += (list.empty() ? "\"" : ", \"") + word + "\"";
  return "[" + list + "]";
}

}  // namespace

std::string build_info_json() {
  Isa isa = Isa::kScalar;
  const bool chosen = current_isa(&isa).ok();
  std::ostringstream json;
  json.exceptions(std::ios::badbit);
  json << "{\"version\": \"" << RLCC_VERSION << "\", \"abi_version\": " << RLCC_ABI_VERSION
       << ", \"compiler\": \"" << compiler() << "\", \"build_type\": \"" << RLCC_BUILD_TYPE
       << "\", \"sanitizers\": \"" << RLCC_SANITIZERS
       << "\", \"backends\": " << word_list(cuda_architectures()[0] == '\0' ? "cpu" : "cpu cuda")
       << ", \"cuda_architectures\": " << word_list(cuda_architectures())
       << ", \"isas_compiled\": " << isa_list(isa_compiled)
       << ", \"isas_available\": " << isa_list(isa_available) << ", \"isa\": ";
  if (chosen) {
    json << '"' << isa_name(isa) << '"';
  } else {
    json << "null";
  }
  json << "}";
  return json.str();
}

}  // namespace restorelcc
