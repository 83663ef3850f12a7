#include "contender.h"

#include <algorithm>
#include <stdexcept>

#include "refcheck.h"

namespace restorelcc::bench {
namespace {

void require(rlcc_status status) {
  if (status != RLCC_OK) throw std::runtime_error(rlcc_last_error());
}

// Everything a call points to, alive as long as the contender.
struct Forward {
  std::vector<char> x, y;
  std::vector<float> comp_rows;
  std::vector<int64_t> comp_index;
  rlcc_sparse_linear_params params{};
};

struct GradX {
  std::vector<char> grad_y, grad_x;
  rlcc_sparse_linear_grad_x_params params{};
};

struct GradValues {
  std::vector<char> x, grad_y, grad_values;
  rlcc_sparse_linear_grad_values_params params{};
};

struct Dense {
  std::vector<char> x;
  std::vector<float> x_fp32, ordered_x, x_scales, y;
  std::vector<int8_t> x_int8;
  rlcc_packed_weight reference_weight{};
};

std::vector<char> zeros(int64_t rows, int64_t columns, rlcc_dtype dtype) {
  return std::vector<char>(static_cast<size_t>(rows * columns * bytes_of(dtype)));
}

Contender forward(Op op, const PackedCopies& packed, int64_t rows, Pool& pool) {
  const rlcc_packed_weight& w = packed.copy(0);
  const rlcc_dtype dtype = activation_of(w.dtype);
  Random random(7);
  auto state = std::make_shared<Forward>();
  state->x = random_x(rows, w.columns, dtype, random);
  state->y = zeros(rows, w.rows, dtype);
  auto& p = state->params;
  p.x = state->x.data();
  p.x_rows = rows;
  p.x_stride = w.columns;
  p.x_dtype = dtype;
  p.y = state->y.data();
  p.y_stride = w.rows;
  p.parallel = pool.parallel();
  int64_t bytes = packed.bytes() + static_cast<int64_t>(state->x.size() + state->y.size());
  if (op == Op::kForwardComp64) {
    for (int64_t i = 0; i < kCompensations * w.rows; ++i) state->comp_rows.push_back(random_value(random));
    for (int64_t m = 0; m < rows; ++m) {
      state->comp_index.push_back(static_cast<int64_t>(random.below(kCompensations)));
    }
    p.comp_rows = state->comp_rows.data();
    p.groups = kCompensations;
    p.comp_index = state->comp_index.data();
    bytes += std::min(rows, kCompensations) * w.rows * 4 + rows * 8;
  }
  p.weight = w;
  return {op,
          name_of(w.dtype),
          packed.count(),
          bytes,
          2 * rows * packed.survivors(),
          [state, &packed](int64_t copy) {
            state->params.weight = packed.copy(copy);
            require(rlcc_sparse_linear(&state->params));
          },
          [state] { return check_forward(state->params); }};
}

Contender grad_x(const PackedCopies& packed, int64_t rows, Pool& pool) {
  const rlcc_packed_weight& w = packed.copy(0);
  const rlcc_dtype dtype = activation_of(w.dtype);
  Random random(8);
  auto state = std::make_shared<GradX>();
  state->grad_y = random_x(rows, w.rows, dtype, random);
  state->grad_x = zeros(rows, w.columns, dtype);
  state->params = {w,     state->grad_y.data(), rows,      w.rows,
                   dtype, state->grad_x.data(), w.columns, pool.parallel()};
  return {Op::kGradX,
          name_of(w.dtype),
          packed.count(),
          packed.bytes() + static_cast<int64_t>(state->grad_y.size() + state->grad_x.size()),
          2 * rows * packed.survivors(),
          [state, &packed](int64_t copy) {
            state->params.weight = packed.copy(copy);
            require(rlcc_sparse_linear_grad_x(&state->params));
          },
          [state] { return check_grad_x(state->params); }};
}

// The values are not read, so the bytes are the mask's and the offsets', and the gradient's.
Contender grad_values(const PackedCopies& packed, int64_t rows, Pool& pool) {
  const rlcc_packed_weight& w = packed.copy(0);
  const rlcc_dtype dtype = activation_of(w.dtype);
  Random random(9);
  auto state = std::make_shared<GradValues>();
  state->x = random_x(rows, w.columns, dtype, random);
  state->grad_y = random_x(rows, w.rows, dtype, random);
  state->grad_values = zeros(1, w.value_count, w.dtype);
  state->params = {w,     state->x.data(),           rows,           w.columns, state->grad_y.data(), w.rows,
                   dtype, state->grad_values.data(), pool.parallel()};
  return {Op::kGradValues,
          name_of(w.dtype),
          packed.count(),
          packed.bytes() + static_cast<int64_t>(state->x.size() + state->grad_y.size()),
          2 * rows * packed.survivors(),
          [state, &packed](int64_t copy) {
            state->params.weight = packed.copy(copy);
            require(rlcc_sparse_linear_grad_values(&state->params));
          },
          [state] { return check_grad_values(state->params); }};
}

}  // namespace

const char* name_of(Op op) {
  constexpr const char* kNames[] = {"forward", "forward_comp64", "grad_x",       "grad_values",
                                    "dense",   "read",           "read_in_order"};
  return kNames[static_cast<int>(op)];
}

Contender sparse_contender(Op op, const PackedCopies& packed, int64_t rows, Pool& pool) {
  if (op == Op::kGradX) return grad_x(packed, rows, pool);
  if (op == Op::kGradValues) return grad_values(packed, rows, pool);
  return forward(op, packed, rows, pool);
}

Contender dense_contender(const DenseCopies& dense, const PackedCopies& packed, Pool& pool) {
  const rlcc_packed_weight& w = packed.copy(0);
  const rlcc_dtype dtype = activation_of(w.dtype);
  const int64_t outputs = w.rows, inputs = w.columns;
  Random random(7);
  auto state = std::make_shared<Dense>();
  state->x = random_x(1, inputs, dtype, random);
  for (int64_t k = 0; k < inputs; ++k) {
    state->x_fp32.push_back(static_cast<float>(element(state->x.data(), dtype, k)));
  }
  state->ordered_x.resize(static_cast<size_t>(inputs));
  state->x_scales.resize(static_cast<size_t>(inputs / kScaleColumns));
  state->x_int8.resize(static_cast<size_t>(inputs));
  state->y.resize(static_cast<size_t>(outputs));
  state->reference_weight = w;
  const DenseKernels& kernels = dense_kernels();
  // What a caller would have to do at each call is timed: bringing x into the form that the kernel wants.
  const auto call = [state, &dense, &pool, &kernels, outputs, inputs, values = w.dtype](int64_t copy) {
    const auto* x = reinterpret_cast<const uint16_t*>(state->x.data());
    const char* weight = dense.values(copy);
    float* y = state->y.data();
    if (values == RLCC_F32) {
      run_on(pool, outputs, [&](int64_t begin, int64_t end) {
        kernels.fp32(reinterpret_cast<const float*>(weight), state->x_fp32.data(), y, inputs, begin, end);
      });
    } else if (values == RLCC_BF16) {
      order_x(x, inputs, state->ordered_x.data());
      run_on(pool, outputs, [&](int64_t begin, int64_t end) {
        kernels.bf16(reinterpret_cast<const uint16_t*>(weight), x, state->ordered_x.data(), y, inputs, begin,
                     end);
      });
    } else {
      quantise_x(state->x_fp32.data(), inputs, state->x_int8.data(), state->x_scales.data());
      run_on(pool, outputs, [&](int64_t begin, int64_t end) {
        kernels.int8(reinterpret_cast<const int8_t*>(weight), dense.scales(copy), state->x_int8.data(),
                     state->x_scales.data(), y, inputs, begin, end);
      });
    }
  };
  return {
      Op::kDense,
      name_of(w.dtype),
      dense.count(),
      dense.bytes() + inputs * bytes_of(dtype) + outputs * 4,
      2 * outputs * inputs,
      call,
      [state, dtype] { return check_dense(state->reference_weight, state->x.data(), dtype, state->y.data()); }};
}

Contender read_contender(Op op, const PackedCopies& packed, Pool& pool) {
  const Arena& arena = packed.arena();
  constexpr int64_t kPiece = 512;
  const int64_t part_bytes = std::min<int64_t>(arena.bytes(), int64_t{32} << 20) / kPiece * kPiece;
  const int64_t parts = arena.bytes() / part_bytes;
  const auto read = op == Op::kRead ? dense_kernels().read : dense_kernels().read_in_order;
  auto sink = std::make_shared<std::atomic<uint64_t>>(0);
  return {op,
          "",
          parts,
          part_bytes,
          0,
          [&arena, &pool, read, part_bytes, sink](int64_t part) {
            const char* from = arena.begin() + part * part_bytes;
            run_on(pool, part_bytes / kPiece, [&](int64_t begin, int64_t end) {
              sink->fetch_add(read(from + begin * kPiece, (end - begin) * kPiece));
            });
          },
          nullptr};
}

}  // namespace restorelcc::bench
