// Errors are values inside the library: a status and a sentence. Exceptions (std::bad_alloc above
// all) stop at guarded(), which every C entry point wraps itself in.
#pragma once

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <iosfwd>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "restorelcc/params.h"

namespace restorelcc {

struct Status {
  rlcc_status code = RLCC_OK;
  std::string message;

  bool ok() const { return code == RLCC_OK; }
};

// A piece of a sentence: text, which has to outlive the call, or a number.
class Piece {
 public:
  Piece(const char* text) : kind_(kText), text_(text) {}
  Piece(const std::string& text) : kind_(kText), text_(text) {}
  Piece(std::string_view text) : kind_(kText), text_(text) {}
  Piece(double number) : kind_(kReal), real_(number) {}
  template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
  Piece(Integer number)
      : kind_(std::is_signed_v<Integer> ? kInteger : kNatural), integer_(static_cast<int64_t>(number)) {}

  void append_to(std::ostream& sentence) const;

 private:
  enum Kind { kText, kReal, kInteger, kNatural } kind_;
  union {
    std::string_view text_;
    double real_;
    int64_t integer_;
  };
};

// Not inlined: there are some hundreds of sentences.
Status failure_of(rlcc_status code, std::initializer_list<Piece> pieces);

// failure(RLCC_INVALID_ARGUMENT, "x_stride is ", stride, ", must be at least ", columns)
template <class... Parts>
Status failure(rlcc_status code, const Parts&... parts) {
  return failure_of(code, {Piece(parts)...});
}

template <class... Parts>
Status invalid(const Parts&... parts) {
  return failure_of(RLCC_INVALID_ARGUMENT, {Piece(parts)...});
}

void set_last_error(std::string message) noexcept;
void set_last_error_literal(const char* message) noexcept;  // allocates nothing
void set_last_error_internal(const char* what) noexcept;    // "internal error: what", as far as there is memory
const char* last_error() noexcept;

constexpr char kNoScratch[] = "out of memory while allocating scratch; use fewer rows per call";

// Runs body() -> Status behind the C border: nothing is thrown past it, and last_error() agrees
// with what it returns.
template <class Body>
rlcc_status guarded(Body&& body, const char* out_of_memory = kNoScratch) noexcept {
  try {
    Status status = std::forward<Body>(body)();
    set_last_error(std::move(status.message));
    return status.code;
  } catch (const std::bad_alloc&) {
    set_last_error_literal(out_of_memory);
    return RLCC_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    set_last_error_internal(error.what());
  } catch (...) {
    set_last_error_literal("internal error: unknown exception");
  }
  return RLCC_INTERNAL;
}

}  // namespace restorelcc

// Returns the failure of `expression` (a Status) from the enclosing function.
#define RLCC_RETURN_IF_FAILED(expression)                      \
  do {                                                         \
    ::restorelcc::Status rlcc_status_of_step = (expression);   \
    if (!rlcc_status_of_step.ok()) return rlcc_status_of_step; \
  } while (0)
