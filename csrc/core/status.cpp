#include "core/status.h"

#include <sstream>

namespace restorelcc {
namespace {
thread_local std::string t_message;
thread_local const char* t_literal = nullptr;  // wins over t_message when set
}  // namespace

void Piece::append_to(std::ostream& sentence) const {
  switch (kind_) {
    case kText: sentence << text_; break;
    case kReal: sentence << real_; break;
    case kInteger: sentence << integer_; break;
    case kNatural: sentence << static_cast<uint64_t>(integer_); break;
  }
}

Status failure_of(rlcc_status code, std::initializer_list<Piece> pieces) {
  std::ostringstream sentence;
  sentence.exceptions(std::ios::badbit);  // else a stream without memory goes on with half a sentence
  for (const Piece& piece : pieces) piece.append_to(sentence);
  return {code, sentence.str()};
}

void set_last_error(std::string message) noexcept {
  t_message = std::move(message);
  t_literal = nullptr;
}

void set_last_error_literal(const char* message) noexcept { t_literal = message; }

void set_last_error_internal(const char* what) noexcept {
  try {
    set_last_error(std::string("internal error: ") + what);
  } catch (...) {
    set_last_error_literal("internal error");
  }
}

const char* last_error() noexcept { return t_literal != nullptr ? t_literal : t_message.c_str(); }

}  // namespace restorelcc
