#include "core/status.h"

namespace restorelcc {
namespace {
thread_local std::string t_message;
thread_local const char* t_literal = nullptr;  // wins over t_message when set
}  // namespace

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
