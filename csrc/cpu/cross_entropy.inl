// linear_cross_entropy: the language model head and its loss, a block of rows of h and a chunk of the
// vocabulary at a time. The logits of that much are kept in fp32, in panels as the register tile leaves them.
//
//   logits[chunk] = h Wᵀ                          dense_product, a panel of W after the other
//   max, sum     <- over the chunk                what nll and lse are made of
//   products     += exp(logits - max) W           the gradient of h, in the same pass over W
//
// The label's own logit is taken out of the chunk: see CrossEntropyJob.

namespace restorelcc::cpu {
namespace {

constexpr float kMinusInfinity = -__builtin_huge_valf();

// exp(x) for x <= 0, to 2 units of the last place; below -87 it stays at exp(-87) = 1.6e-38, which is nothing
// beside the 1 that the largest exponential of a row is. NaN stays NaN. exp(x) = 2^n 2^f, n whole and |f| <=
// 1/2; the coefficients are those of a minimax polynomial of 2^f.
inline Vector::F32 exponential(Vector::F32 x) {
  constexpr float kLeast = -87, kLog2E = 1.44269504088896341f;
  constexpr float kCoefficients[] = {1.535336188319500e-4f,
                                     1.339887440266574e-3f,
                                     9.618437357674640e-3f,
                                     5.550332471162809e-2f,
                                     2.402264791363012e-1f,
                                     6.931472028550421e-1f,
                                     1.0f};
  const Vector::F32 t = Vector::mul(Vector::max(Vector::broadcast(&kLeast), x), Vector::broadcast(&kLog2E));
  const Vector::F32 n = Vector::round(t), f = Vector::sub(t, n);
  Vector::F32 p = Vector::broadcast(kCoefficients);
#pragma GCC unroll 6
  for (int i = 1; i < 7; ++i) p = Vector::fma(p, f, Vector::broadcast(kCoefficients + i));
  return Vector::times_power_of_two(p, n);
}
inline float exponential(float x) {
  float lanes[Vector::kLanes];
  Vector::store(lanes, exponential(Vector::broadcast(&x)));
  return lanes[0];
}

inline float largest_lane(Vector::F32 v) {
  float lanes[Vector::kLanes];
  Vector::store(lanes, v);
  float most = lanes[0];
  for (int i = 1; i < Vector::kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

inline int64_t chunk_panels(const CrossEntropyJob& job) {
  return (job.count + kPanelColumns - 1) / kPanelColumns;
}
inline float* logit_row(const CrossEntropyJob& job, int64_t panel, int64_t row) {
  return job.logits + (panel * job.logit_rows + row) * kPanelColumns;
}

// Adds the bias to a row of the chunk; places past the chunk become -infinity.
inline void complete_row(const CrossEntropyJob& job, int64_t row) {
  const int64_t panels = chunk_panels(job), last = panels - 1;
  if (job.bias != nullptr) {
    for (int64_t p = 0; p < panels; ++p) {
      const float* bias = job.bias + job.first + p * kPanelColumns;
      float* logits = logit_row(job, p, row);
      const int64_t count = smaller(kPanelColumns, job.count - p * kPanelColumns);
      for (int64_t i = 0; i < count; ++i) logits[i] += bias[i];
    }
  }
  for (int64_t i = job.count - last * kPanelColumns; i < kPanelColumns; ++i)
    logit_row(job, last, row)[i] = kMinusInfinity;
}

// Where the row's label lies in this chunk's logits; null where it does not.
inline float* label_place(const CrossEntropyJob& job, int64_t row) {
  const int64_t at = job.labels[row] - job.first;
  if (at < 0 || at >= job.count) return nullptr;
  return logit_row(job, at / kPanelColumns, row) + at % kPanelColumns;
}

// The row's state takes the chunk in. kStore: logits become exp(logits - max), max the new one, which is what
// is subtracted of a row without any finite logit as well: 0. Returns by how much older exponentials shrink.
template <bool kStore>
inline float take_chunk(const CrossEntropyJob& job, int64_t row) {
  complete_row(job, row);
  float* const label = label_place(job, row);
  if (label != nullptr) {
    job.label_logit[row] = *label;
    *label = kMinusInfinity;
  }
  const int64_t panels = chunk_panels(job);
  Vector::F32 most = Vector::broadcast(&kMinusInfinity);
  for (int64_t p = 0; p < panels; ++p) {
    for (int v = 0; v < Vector::kPanelVectors; ++v) {
      most = Vector::max(most, Vector::load(logit_row(job, p, row) + v * Vector::kLanes));
    }
  }
  const float before = job.max[row], chunk = largest_lane(most);
  const float now = chunk > before ? chunk : before;
  const float reference = now == kMinusInfinity ? 0 : now;
  const Vector::F32 minus = Vector::broadcast(&reference);
  Vector::F32 sums[2] = {Vector::zero(), Vector::zero()};
  static_assert(Vector::kPanelVectors == 2, "a sum for each vector of a panel");
  for (int64_t p = 0; p < panels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* logits = logit_row(job, p, row) + v * Vector::kLanes;
      const Vector::F32 e = exponential(Vector::sub(Vector::load(logits), minus));
      if (kStore) Vector::store(logits, e);
      sums[v] = Vector::add(sums[v], e);
    }
  }
  const float shrink = now > before ? (before == kMinusInfinity ? 0 : exponential(before - now)) : 1;
  job.sum[row] = job.sum[row] * shrink + Vector::sum(Vector::add(sums[0], sums[1]));
  job.max[row] = now;
  return shrink;
}

void add_to_state(const CrossEntropyJob& job, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) take_chunk<false>(job, row);
}

// Packs the tile's logits, whatever they have become, to be multiplied: A of depth `count`.
template <class Panels>
inline void pack_logit_tile(const CrossEntropyJob& job, int64_t tile) {
  const int64_t units = Panels::units(job.count), row_end = smaller((tile + 1) * kTileRows, job.h.rows);
  float* packed = reinterpret_cast<float*>(job.weight_tiles) + tile * kTileRows * units;
  constexpr int64_t kElements = Vector::kLanes * Panels::kPerUnit;
  typename Vector::F32 block[Vector::kLanes];
  for (int64_t first = 0; first < job.count; first += kElements) {
    const int64_t panel = first / kPanelColumns, place = first % kPanelColumns;
#pragma GCC unroll 16
    for (int r = 0; r < Vector::kLanes; ++r) {
      block[r] = Panels::from_floats(logit_row(job, panel, smaller(tile * kTileRows + r, row_end - 1)) + place);
    }
    Vector::transpose(block);
    const int64_t u = first / Panels::kPerUnit;
    store_tile(block, units - u, packed + u * kTileRows);
  }
}

template <class Panels>
void exponentials(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    for (int64_t row = tile * kTileRows; row < smaller((tile + 1) * kTileRows, job.h.rows); ++row) {
      const float shrink = take_chunk<true>(job, row);
      if (shrink == 1) continue;
      for (int64_t e = 0; e < job.h.columns; e += kPanelColumns) {
        float* products = job.products + (e * job.logit_rows) + row * kPanelColumns;
        for (int i = 0; i < kPanelColumns; ++i) products[i] *= shrink;
      }
    }
    pack_logit_tile<Panels>(job, tile);
  }
}

template <class Panels>
void logit_gradients(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    for (int64_t row = tile * kTileRows; row < smaller((tile + 1) * kTileRows, job.h.rows); ++row) {
      complete_row(job, row);
      const Vector::F32 minus = Vector::broadcast(job.lse + row),
                        factor = Vector::broadcast(job.grad_nll + row);
      for (int64_t p = 0; p < chunk_panels(job); ++p) {
        for (int v = 0; v < Vector::kPanelVectors; ++v) {
          float* logits = logit_row(job, p, row) + v * Vector::kLanes;
          const Vector::F32 e = exponential(Vector::sub(Vector::load(logits), minus));
          Vector::store(logits, Vector::mul(factor, e));
        }
      }
      float* const label = label_place(job, row);
      if (label != nullptr) *label -= job.grad_nll[row];
    }
    if (job.weight_tiles != nullptr) pack_logit_tile<Panels>(job, tile);
  }
}

template <class Panels>
void logits_run(const CrossEntropyJob& job, int64_t panel_begin, int64_t panel_end, char* scratch) {
  float* b = reinterpret_cast<float*>(scratch);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t first = job.first + panel * kPanelColumns;
    dense_product<Panels>(job.h_tiles, Panels::units(job.h.columns), job.h.rows, logit_row(job, panel, 0),
                          false, b, [&](int64_t begin, int64_t end, float* to) {
                            expand_transposed<Panels>(job.weight, first, begin, end, to);
                          });
  }
}

template <class Panels>
void gradient_run(const CrossEntropyJob& job, int64_t panel_begin, int64_t panel_end, char* scratch) {
  float* b = reinterpret_cast<float*>(scratch);
  DenseMatrix chunk = job.weight;
  chunk.data = dense_row<typename Panels::Value>(job.weight, job.first);
  chunk.rows = job.count;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    dense_product<Panels>(job.weight_tiles, Panels::units(job.count), job.h.rows,
                          job.products + panel * job.logit_rows * kPanelColumns, true, b,
                          [&](int64_t begin, int64_t end, float* to) {
                            expand_plain<Panels>(chunk, panel * kPanelColumns, begin, end, to);
                          });
  }
}

// Rows of A are columns of the chunk here, their depth the rows of h. A tile's columns may lie in two panels,
// so places are gathered one by one: the weight's own gradient is wanted rarely.
template <class Panels>
void pack_transposed(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end) {
  const int64_t units = Panels::units(job.h.rows), row_last = job.h.rows - 1;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    float* packed = reinterpret_cast<float*>(job.weight_tiles) + tile * kTileRows * units;
    for (int64_t u = 0; u < units; ++u) {
      for (int64_t r = 0; r < kTileRows; ++r) {
        const int64_t column = smaller(tile * kTileRows + r, job.count - 1);
        const int64_t panel = column / kPanelColumns, place = column % kPanelColumns;
        const float value = logit_row(job, panel, u * Panels::kPerUnit)[place];
        if constexpr (Panels::kPerUnit == 1) {
          packed[u * kTileRows + r] = value;
        } else {
          const bool paired = 2 * u + 1 <= row_last;
          Bf16 low, high;
          narrow(value, &low);
          narrow(paired ? logit_row(job, panel, 2 * u + 1)[place] : 0.0f, &high);
          packed[u * kTileRows + r] = float_from_bits(low.bits | (static_cast<uint32_t>(high.bits) << 16));
        }
      }
    }
  }
}

template <class Panels>
void weight_gradient_run(const CrossEntropyJob& job, int64_t panel_begin, int64_t panel_end, char* scratch) {
  float* b = reinterpret_cast<float*>(scratch);
  const int64_t product_rows = (job.count + kTileRows - 1) / kTileRows * kTileRows;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    dense_product<Panels>(job.weight_tiles, Panels::units(job.h.rows), job.count,
                          job.products + panel * product_rows * kPanelColumns, true, b,
                          [&](int64_t begin, int64_t end, float* to) {
                            expand_plain<Panels>(job.h, panel * kPanelColumns, begin, end, to);
                          });
  }
}

template <class Value>
void finish_gradient(const CrossEntropyJob& job, int64_t product_rows, int64_t row, float factor,
                     float label_factor, int64_t label, void* grad) {
  Value* to = static_cast<Value*>(grad);
  const Value* label_row = label < 0 ? nullptr : dense_row<Value>(job.weight, label);
  for (int64_t e = 0; e < job.h.columns; e += kPanelColumns) {
    const float* products = job.products + e * product_rows + row * kPanelColumns;
    for (int64_t i = 0; i < smaller(kPanelColumns, job.h.columns - e); ++i) {
      float value = factor * products[i];
      if (label_row != nullptr) value += label_factor * Vector::widen(label_row[e + i]);
      narrow(value, to + e + i);
    }
  }
}

template <class Panels>
int64_t dense_tile_bytes(int64_t depth) {
  return kTileRows * Panels::units(depth) * 4;
}
template <class Panels>
void pack_h(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end) {
  pack_dense_tiles<Panels>(job.h, job.h_tiles, tile_begin, tile_end);
}

template <class Panels>
constexpr linear_cross_entropy_panel_kernel cross_entropy_kernel_of = {kTileRows,
                                                                       kPanelColumns,
                                                                       dense_tile_bytes<Panels>,
                                                                       kDensePanelBytes,
                                                                       pack_h<Panels>,
                                                                       logits_run<Panels>,
                                                                       add_to_state,
                                                                       exponentials<Panels>,
                                                                       logit_gradients<Panels>,
                                                                       gradient_run<Panels>,
                                                                       pack_transposed<Panels>,
                                                                       weight_gradient_run<Panels>,
                                                                       finish_gradient<typename Panels::Value>};

template <class Value>
constexpr linear_cross_entropy_panel_kernel linear_cross_entropy_panel_of =
    cross_entropy_kernel_of<SinglePanels<Value>>;
#if defined(RLCC_DOT_BF16)
template <>
constexpr linear_cross_entropy_panel_kernel linear_cross_entropy_panel_of<Bf16> =
    cross_entropy_kernel_of<PairPanels>;
#endif

}  // namespace
}  // namespace restorelcc::cpu
