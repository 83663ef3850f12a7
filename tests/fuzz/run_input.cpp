// One input through every entry point that takes a packed weight.
//
// The C ABI takes pointers without lengths, so whoever reads a file allots each array the size that the header
// implies. This does the same, to the byte, so that a sanitizer sees any access beyond; headers whose arrays
// would be larger than a limit are skipped, save those that the library must refuse before it touches an array.
// The library's verdict must be that of this program's own reading of the format.
#include <algorithm>
#include <cstring>
#include <memory>

#include "packed_input.h"

namespace restorelcc::fuzz {

const char kProgram[] = "rlcc_fuzz";
const char kAbout[] = "garbles packed weights and passes them to every entry point that takes one.";

namespace {

constexpr int64_t kMostBytes = 1 << 20;      // of one array
constexpr int64_t kRows[] = {1, 3, 20, 40};  // M: one row, a few, panels, survivors alone

// Exactly so many bytes on the heap, so that a sanitizer sees one too many.
class Exact {
 public:
  Exact(int64_t bytes, uint8_t fill, int64_t offset = 0)
      : bytes_(static_cast<size_t>(bytes)),
        offset_(static_cast<size_t>(offset)),
        data_(new uint8_t[bytes_ + offset_]) {
    std::memset(data_.get(), fill, bytes_ + offset_);
  }
  void copy_from(const Bytes& from) {
    if (!from.empty()) std::memcpy(get(), from.data(), std::min(from.size(), bytes_));
  }
  uint8_t* get() const { return data_.get() + offset_; }
  bool is_all(uint8_t fill) const {
    return std::all_of(get(), get() + bytes_, [&](uint8_t byte) { return byte == fill; });
  }
  bool operator==(const Exact& other) const { return std::equal(get(), get() + bytes_, other.get()); }

 private:
  size_t bytes_, offset_;
  std::unique_ptr<uint8_t[]> data_;
};

bool float_dtype(int32_t dtype) { return dtype == RLCC_F32 || dtype == RLCC_BF16 || dtype == RLCC_F16; }
int64_t element_bytes(int32_t dtype) {
  return dtype == RLCC_I8 ? 1 : dtype == RLCC_BF16 || dtype == RLCC_F16 ? 2 : 4;
}

struct Sizes {
  int64_t bytes[kParts] = {};
  bool impossible = false;  // negative, no such dtype, or beyond 64 bits: no array may be touched
  bool too_large = false;
};

Sizes sizes_of(const Header& h) {
  Sizes sizes;
  if ((!float_dtype(h.dtype) && h.dtype != RLCC_I8) || h.rows < 0 || h.columns < 0 || h.value_count < 0) {
    sizes.impossible = true;
    return sizes;
  }
  const int64_t words = h.columns / 64 + (h.columns % 64 != 0),
                groups = h.columns / 128 + (h.columns % 128 != 0);
  int64_t dense = 0, offsets = 0;
  sizes.impossible = __builtin_mul_overflow(h.rows, h.columns, &dense) ||
                     __builtin_mul_overflow(dense, int64_t{8}, &dense) ||
                     __builtin_mul_overflow(h.rows, words * 8, &sizes.bytes[kMask]) ||
                     __builtin_add_overflow(h.rows, int64_t{1}, &offsets) ||
                     __builtin_mul_overflow(offsets, int64_t{8}, &sizes.bytes[kOffsets]) ||
                     __builtin_mul_overflow(h.value_count, element_bytes(h.dtype), &sizes.bytes[kValues]);
  if (sizes.impossible) return sizes;
  if (h.dtype == RLCC_I8) sizes.bytes[kScales] = h.rows * groups * 2;
  for (int64_t bytes : sizes.bytes) sizes.too_large |= bytes > kMostBytes;
  return sizes;
}

// The format as docs/format.md says it, read once more: what the library's verdict is held against.
bool is_good(const rlcc_packed_weight& w) {
  const int64_t words = w.columns / 64 + (w.columns % 64 != 0), unit = element_bytes(w.dtype),
                aligned = 16 / unit;
  const int64_t capacity = w.value_count - 64 / unit;
  if (capacity < 0 || w.row_offsets == nullptr || w.values == nullptr) return false;
  if (w.mask == nullptr && w.rows * words > 0) return false;
  if (reinterpret_cast<uintptr_t>(w.values) % static_cast<uintptr_t>(unit) != 0) return false;
  const bool wants_scales = w.dtype == RLCC_I8 && w.rows * w.columns > 0;
  if (w.scales == nullptr ? wants_scales : w.dtype != RLCC_I8) return false;
  int64_t end = 0;
  for (int64_t n = 0; n <= w.rows; ++n) {
    if (w.row_offsets[n] < end || w.row_offsets[n] > capacity || w.row_offsets[n] % aligned != 0) return false;
    end = w.row_offsets[n];
    for (int64_t k = 0; n < w.rows && k < words * 64; ++k) {
      const bool survives = ((w.mask[n * words + k / 64] >> (k % 64)) & 1) != 0;
      if (survives && k >= w.columns) return false;
      end += survives ? 1 : 0;
    }
  }
  return true;
}

// One call: its status must be the expected one. A refusal has a sentence.
bool answers(const char* what, rlcc_status status, bool expect_ok, std::string* failure) {
  const std::string sentence = rlcc_last_error();
  if (status == (expect_ok ? RLCC_OK : RLCC_INVALID_ARGUMENT) && (expect_ok || sentence.size() > 10))
    return true;
  *failure = std::string(what) + " returned " + std::to_string(status) + " (\"" + sentence + "\"), expected " +
             (expect_ok ? "RLCC_OK" : "RLCC_INVALID_ARGUMENT and a sentence");
  return false;
}

// call(weight, out) twice, with other bytes in `out` before and the second time trusted: the result must be the
// same bits, that is wholly written. Where the call must fail, `out` must stay as it was.
template <class Call>
bool twice(const char* what, rlcc_packed_weight weight, bool ok, int64_t bytes, uint8_t second_fill,
           const Call& call, std::string* failure) {
  const Exact first(bytes, 0x5a), second(bytes, second_fill);
  if (!answers(what, call(weight, first.get()), ok, failure)) return false;
  if (!ok) {
    if (first.is_all(0x5a)) return true;
    *failure = std::string(what) + " was refused and wrote its output";
    return false;
  }
  weight.trusted = 1;
  if (!answers(what, call(weight, second.get()), ok, failure)) return false;
  if (first == second) return true;
  *failure = std::string(what) + ": two calls differ, or part of the output was not written";
  return false;
}

struct Activations {
  Exact data;
  Activations(int64_t rows, int64_t columns, int32_t dtype) : data(rows * columns * element_bytes(dtype), 0) {
    for (int64_t i = 0; i < rows * columns * element_bytes(dtype); ++i) {  // small numbers in every dtype
      data.get()[i] = static_cast<uint8_t>(i % 2 == 0 ? i : 0x3c | (i & 2));
    }
  }
};

bool run_forward(const PackedInput& input, const rlcc_packed_weight& weight, bool good, int32_t x_dtype,
                 int64_t m, std::string* failure) {
  const Activations x(m, weight.columns, x_dtype);
  const int64_t groups = input.header.groups % 4;
  const Activations comp_rows(groups, weight.rows, RLCC_F32), bias(1, weight.rows, RLCC_F32);
  const Exact comp_index(groups > 1 ? m * 8 : 0, 0);
  bool ok = good;
  if (groups > 1 && (input.header.flags & kWildCompIndex) != 0 && input.tail.size() >= 8) {
    int64_t index = 0;
    std::memcpy(&index, input.tail.data(), 8);
    std::memcpy(comp_index.get(), &index, 8);
    ok = ok && index >= 0 && index < groups;
  }
  rlcc_sparse_linear_params p{};
  p.x = x.data.get();
  p.x_rows = m;
  p.x_stride = weight.columns;
  p.x_dtype = x_dtype;
  p.y_stride = weight.rows;
  p.groups = groups;
  if (groups > 0) p.comp_rows = reinterpret_cast<const float*>(comp_rows.data.get());
  if (groups > 1) p.comp_index = reinterpret_cast<const int64_t*>(comp_index.get());
  if (groups == 2) p.bias = reinterpret_cast<const float*>(bias.data.get());
  return twice(
      "rlcc_sparse_linear", weight, ok, m * weight.rows * element_bytes(x_dtype), 0xa5,
      [&](const rlcc_packed_weight& w, uint8_t* y) {
        p.weight = w;
        p.y = y;
        return rlcc_sparse_linear(&p);
      },
      failure);
}

bool run_gradients(const rlcc_packed_weight& weight, bool good, int32_t x_dtype, int64_t m,
                   std::string* failure) {
  const Activations x(m, weight.columns, x_dtype), grad_y(m, weight.rows, x_dtype);
  const auto grad_x = [&](const rlcc_packed_weight& w, uint8_t* out) {
    const rlcc_sparse_linear_grad_x_params p{w, grad_y.data.get(), m, w.rows, x_dtype, out, w.columns, nullptr};
    return rlcc_sparse_linear_grad_x(&p);
  };
  const auto grad_values = [&](const rlcc_packed_weight& w, uint8_t* out) {
    const rlcc_sparse_linear_grad_values_params p{w,      x.data.get(), m,   w.columns, grad_y.data.get(),
                                                  w.rows, x_dtype,      out, nullptr};
    return rlcc_sparse_linear_grad_values(&p);
  };
  // What lies between the rows of grad_values stays as it is, so both calls get the same bytes there.
  return twice("rlcc_sparse_linear_grad_x", weight, good, m * weight.columns * element_bytes(x_dtype), 0xa5,
               grad_x, failure) &&
         twice("rlcc_sparse_linear_grad_values", weight, good && weight.dtype != RLCC_I8,
               weight.value_count * element_bytes(weight.dtype), 0x5a, grad_values, failure);
}

bool run_unpack(const rlcc_packed_weight& weight, bool good, std::string* failure) {
  const int64_t bytes =
      weight.rows * weight.columns * (weight.dtype == RLCC_I8 ? 4 : element_bytes(weight.dtype));
  return twice(
      "rlcc_unpack", weight, good, bytes, 0xa5,
      [&](const rlcc_packed_weight& w, uint8_t* dense) { return rlcc_unpack(&w, dense, w.columns); }, failure);
}

// With a header that no array can fit: pointers to little, and nothing may be read or written.
Outcome run_impossible(const Header& h, std::string* failure) {
  const Exact nothing(64, 0x5a);
  void* data = nothing.get();
  rlcc_packed_weight w{h.rows,
                       h.columns,
                       static_cast<uint64_t*>(data),
                       data,
                       h.value_count,
                       static_cast<int64_t*>(data),
                       h.dtype,
                       0,
                       nullptr};
  if (h.dtype == RLCC_I8) w.scales = static_cast<uint16_t*>(data);
  rlcc_sparse_linear_params forward{};
  forward.weight = w;
  forward.x = forward.y = data;
  forward.x_rows = 1;
  const rlcc_sparse_linear_grad_x_params grad_x{w, data, 1, h.rows, RLCC_F32, data, h.columns, nullptr};
  const rlcc_sparse_linear_grad_values_params grad_values{w,      data,     1,    h.columns, data,
                                                          h.rows, RLCC_F32, data, nullptr};
  const bool all =
      answers("rlcc_packed_validate", rlcc_packed_validate(&w), false, failure) &&
      answers("rlcc_unpack", rlcc_unpack(&w, data, h.columns), false, failure) &&
      answers("rlcc_sparse_linear", rlcc_sparse_linear(&forward), false, failure) &&
      answers("rlcc_sparse_linear_grad_x", rlcc_sparse_linear_grad_x(&grad_x), false, failure) &&
      answers("rlcc_sparse_linear_grad_values", rlcc_sparse_linear_grad_values(&grad_values), false, failure);
  if (all && !nothing.is_all(0x5a)) *failure = "a refused call wrote something";
  return Outcome::kRefused;
}

void choose_isa(uint32_t index) {
  constexpr const char* kIsas[] = {"", "scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16"};
  if (rlcc_force_isa(kIsas[index % 6]) != RLCC_OK) rlcc_force_isa("");  // not of this CPU
}

}  // namespace

Outcome run_input(const Bytes& bytes, std::string* failure) {
  failure->clear();
  PackedInput input;
  if (!parse(bytes, &input)) return Outcome::kNoInput;
  Header& h = input.header;
  choose_isa(h.isa);
  if ((h.flags & kCountFromBytes) != 0) {
    h.value_count = static_cast<int64_t>(input.parts[kValues].size()) / element_bytes(h.dtype);
  }
  const Sizes sizes = sizes_of(h);
  if (sizes.impossible) return run_impossible(h, failure);
  if (sizes.too_large) return Outcome::kTooLarge;

  const bool odd_scales = (h.flags & kOddScales) != 0, has_scales = (h.dtype == RLCC_I8) != odd_scales;
  Exact mask(sizes.bytes[kMask], 0), offsets(sizes.bytes[kOffsets], 0), scales(sizes.bytes[kScales], 0);
  Exact values(sizes.bytes[kValues], 0, (h.flags & kMisaligned) != 0 ? 1 : 0);
  mask.copy_from(input.parts[kMask]);
  values.copy_from(input.parts[kValues]);
  offsets.copy_from(input.parts[kOffsets]);
  scales.copy_from(input.parts[kScales]);
  const auto or_null = [&](uint8_t* data, Flag flag) -> void* {
    return (h.flags & flag) != 0 ? nullptr : data;
  };
  rlcc_packed_weight weight{};
  weight.rows = h.rows;
  weight.columns = h.columns;
  weight.mask = static_cast<const uint64_t*>(or_null(mask.get(), kNullMask));
  weight.values = or_null(values.get(), kNullValues);
  weight.value_count = h.value_count;
  weight.row_offsets = static_cast<const int64_t*>(or_null(offsets.get(), kNullOffsets));
  weight.dtype = h.dtype;
  if (has_scales) weight.scales = reinterpret_cast<const uint16_t*>(scales.get());

  const bool good = is_good(weight);
  if (!answers("rlcc_packed_validate", rlcc_packed_validate(&weight), good, failure)) return Outcome::kRefused;
  const Outcome outcome = good ? Outcome::kAccepted : Outcome::kRefused;
  // Arrays this long would be slow, not different.
  const int64_t longest = std::max(h.rows, h.columns), most_rows = kRows[3];
  if (longest > kMostBytes / (4 * most_rows) || h.rows * h.columns * 4 > kMostBytes) return outcome;

  if (!run_unpack(weight, good, failure)) return outcome;
  const int32_t x_dtype =
      float_dtype(h.x_dtype) ? h.x_dtype : h.x_dtype & 1;  // a wrong one has tests of its own
  for (int64_t m : kRows) {
    if (!run_forward(input, weight, good, x_dtype, m, failure)) return outcome;
    if (!run_gradients(weight, good, x_dtype, m, failure)) return outcome;
  }
  return outcome;
}

}  // namespace restorelcc::fuzz
