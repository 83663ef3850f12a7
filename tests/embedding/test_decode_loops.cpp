// The loops of examples/decode on every instruction set, on ragged sizes and both storage types, against
// float64.
//
// Budget: a few roundings of fp32 (2^-24) times what is summed, and half a unit of the type that is stored.
// Every array stands between canaries.
#include "loops.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "core/element.h"
#include "rope.h"

using namespace decode;
using restorelcc::test::report;
using restorelcc::test::skip;

namespace {

constexpr double kFloat = 0x1p-24;
constexpr rlcc_dtype kTypes[] = {RLCC_F32, RLCC_BF16};
constexpr uint16_t kCanary = 0x7fa5;  // a NaN of bf16, and of fp32 when it stands there twice

double half_unit(rlcc_dtype dtype) { return dtype == RLCC_F32 ? kFloat : 0x1p-8; }

// `count` elements of dtype with canaries before and behind them.
class Row {
 public:
  Row(int64_t count, rlcc_dtype dtype)
      : dtype_(dtype), halves_(static_cast<size_t>(kGap * 2 + count * element_bytes(dtype) / 2), kCanary) {}
  Row(int64_t count, rlcc_dtype dtype, std::mt19937& random, float size = 1) : Row(count, dtype) {
    std::normal_distribution<float> normal(0, size);
    for (int64_t i = 0; i < count; ++i) restorelcc::set_element(data(), dtype, i, normal(random));
  }
  void* data() { return halves_.data() + kGap; }
  const void* data() const { return halves_.data() + kGap; }
  float* floats() { return static_cast<float*>(data()); }
  double at(int64_t i) const { return restorelcc::element(data(), dtype_, i); }
  bool intact() const {
    bool whole = true;
    for (size_t i = 0; i < kGap; ++i)
      whole = whole && halves_[i] == kCanary && halves_[halves_.size() - 1 - i] == kCanary;
    return whole;
  }

 private:
  static constexpr size_t kGap = 64;
  rlcc_dtype dtype_;
  std::vector<uint16_t> halves_;
};

void norms(const Loops& loops, rlcc_dtype type, std::mt19937& random) {
  for (int64_t n : {1, 3, 15, 16, 17, 63, 64, 65, 576}) {
    const Row x(n, type, random, 30);
    Row weight(n, RLCC_F32, random), y(n, type), floats(n, RLCC_F32);
    loops.rms_norm(x.data(), weight.floats(), 1e-5f, n, y.data());
    loops.rms_norm_to_float(x.data(), weight.floats(), 1e-5f, n, floats.floats());
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += x.at(i) * x.at(i);
    const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(1e-5f));
    for (int64_t i = 0; i < n; ++i) {
      const double exact = x.at(i) * factor * weight.at(i);
      CHECK(std::fabs(floats.at(i) - exact) <= 16 * kFloat * std::fabs(exact))
          << loops.isa << " n " << n << " at " << i;
      CHECK(std::fabs(y.at(i) - exact) <= (16 * kFloat + half_unit(type)) * std::fabs(exact))
          << loops.isa << " n " << n;
    }
    CHECK(y.intact() && floats.intact());
  }
}

void gates(const Loops& loops, rlcc_dtype type, std::mt19937& random) {
  for (int64_t n : {1, 7, 16, 33, 200}) {
    Row gate(n, type, random, 8), up(n, type, random), y(n, type);
    const double edges[] = {-200, -90, -87, -20, 0, 20, 88, 200};
    for (int64_t i = 0; i < std::min<int64_t>(n, 8); ++i)
      restorelcc::set_element(gate.data(), type, i, edges[i]);
    loops.swiglu(gate.data(), up.data(), n, y.data());
    for (int64_t i = 0; i < n; ++i) {
      const double exact = gate.at(i) / (1 + std::exp(-gate.at(i))) * up.at(i);
      // Below -87 exp is held, which costs less than the smallest normal number times |up gate|.
      const double allowed =
          (16 * kFloat + half_unit(type)) * std::fabs(exact) + 1e-35 * std::fabs(gate.at(i) * up.at(i));
      CHECK(std::fabs(y.at(i) - exact) <= allowed)
          << loops.isa << " " << gate.at(i) << " " << up.at(i) << ": " << y.at(i);
    }
    CHECK(y.intact());
  }
  Row gate(20, type, random), y(20, type);
  restorelcc::set_element(gate.data(), type, 17, NAN);
  loops.swiglu(gate.data(), gate.data(), 20, y.data());
  CHECK(std::isnan(y.at(17)) && !std::isnan(y.at(16)));
}

// Bit by bit how bf16 is stored: of gates of 32 and more silu(g) is g, so y is the product of two bf16, which
// fp32 holds exactly; half of those lie between two bf16. u: every bf16 there is, denormals, infinities and NaN
// too.
void rounding(const Loops& loops) {
  constexpr int64_t kAll = 1 << 16;
  Row gate(kAll, RLCC_BF16), up(kAll, RLCC_BF16), y(kAll, RLCC_BF16);
  for (int64_t i = 0; i < kAll; ++i) static_cast<uint16_t*>(up.data())[i] = static_cast<uint16_t>(i);
  for (const float g : {32.0f, 33.0f, 48.0f, 63.5f, 85.5f}) {
    for (int64_t i = 0; i < kAll; ++i) restorelcc::set_element(gate.data(), RLCC_BF16, i, g);
    for (const int64_t n : {kAll, int64_t{7}}) {  // whole vectors, a part of one
      const int64_t first = n == kAll ? 0 : 0x3f81;
      loops.swiglu(gate.data(), static_cast<const uint16_t*>(up.data()) + first, n, y.data());
      int64_t wrong = 0, last = 0;
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t found = static_cast<const uint16_t*>(y.data())[i];
        const float product = g * static_cast<float>(up.at(first + i));
        const bool same =
            std::isnan(product) ? std::isnan(y.at(i)) : found == restorelcc::bf16_of_float(product);
        wrong += same ? 0 : 1;
        last = same ? last : first + i;
      }
      CHECK(wrong == 0) << loops.isa << ": " << wrong << " of " << n << " products of " << g << ", bits "
                        << last;
    }
  }
  CHECK(y.intact());
}

void largest(const Loops& loops, std::mt19937& random) {
  for (int64_t n : {1, 2, 15, 16, 17, 1000}) {
    Row row(n, RLCC_F32, random);
    for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
      row.floats()[at] = 100.0f + static_cast<float>(at);
      CHECK(loops.largest(row.floats(), n) == at) << loops.isa << " n " << n;
    }
    if (n > 2) {
      row.floats()[n / 2] = row.floats()[n - 1];
      CHECK(loops.largest(row.floats(), n) == n / 2) << "the first of equals";
    }
    for (float wrong : {NAN, INFINITY, -INFINITY}) {
      row.floats()[n - 1] = wrong;
      CHECK(loops.largest(row.floats(), n) == -1) << loops.isa << " n " << n << " " << wrong;
    }
  }
  CHECK(loops.largest(nullptr, 0) == -1);
}

// A head of a cache of `positions` filled by store_key_value, and what attention over it is in float64.
void attention(const Loops& loops, rlcc_dtype type, rlcc_dtype cache_type, int64_t dim, int64_t positions,
               std::mt19937& random) {
  const HeadShape shape{dim, (dim + 15) / 16 * 16};
  const int64_t capacity = (positions + kBlock - 1) / kBlock * kBlock, half = dim / 2;
  Buffer keys(capacity * dim, cache_type), values(capacity * shape.padded_dim, cache_type);
  const HeadCache cache{keys.bytes(), values.bytes()};
  std::vector<std::vector<double>> stored_keys, stored_values;
  Row cosines(half, RLCC_F32), sines(half, RLCC_F32);
  for (int64_t s = 0; s < positions; ++s) {
    const Row key(dim, type, random, 2), value(dim, type, random);
    for (int64_t i = 0; i < half; ++i) {
      cosines.floats()[i] = static_cast<float>(std::cos(0.1 * static_cast<double>(s * (i + 1))));
      sines.floats()[i] = static_cast<float>(std::sin(0.1 * static_cast<double>(s * (i + 1))));
    }
    loops.store_key_value(key.data(), value.data(), cosines.floats(), sines.floats(), shape, s, cache);
    std::vector<double> k(static_cast<size_t>(dim)), v(k);
    for (int64_t i = 0; i < half; ++i) {
      const double c = cosines.at(i), t = sines.at(i), first = key.at(i), second = key.at(i + half);
      k[static_cast<size_t>(i)] = first * c - second * t;
      k[static_cast<size_t>(i + half)] = second * c + first * t;
    }
    for (int64_t d = 0; d < dim; ++d) v[static_cast<size_t>(d)] = value.at(d);
    stored_keys.push_back(k);
    stored_values.push_back(v);
  }
  const Row x(dim, type, random);
  Row query(dim, RLCC_F32), z(dim, type);
  loops.rotate_query(x.data(), cosines.floats(), sines.floats(), dim, 0.25f, query.floats());
  for (int64_t i = 0; i < half; ++i) {
    const double exact = (x.at(i) * cosines.at(i) - x.at(i + half) * sines.at(i)) / 4;
    CHECK(std::fabs(query.at(i) - exact) <= 4 * kFloat * (std::fabs(x.at(i)) + std::fabs(x.at(i + half))))
        << loops.isa;
  }
  for (int64_t used : {int64_t{1}, positions / 2 + 1, positions}) {
    loops.attend(query.floats(), cache, shape, used, z.data());
    std::vector<double> scores, slack;
    double most = -INFINITY;
    for (int64_t s = 0; s < used; ++s) {
      double score = 0, size = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double product = query.at(d) * stored_keys[static_cast<size_t>(s)][static_cast<size_t>(d)];
        score += product;
        size += std::fabs(product);
      }
      scores.push_back(score);
      slack.push_back((16 * kFloat + half_unit(cache_type)) * size);
      most = std::max(most, score);
    }
    // A score that is off by e makes its weight off by the factor exp(e); the others share the blame.
    double total = 0, off = 0;
    for (size_t s = 0; s < scores.size(); ++s) {
      total += std::exp(scores[s] - most);
      off = std::max(off, slack[s]);
    }
    for (int64_t d = 0; d < dim; ++d) {
      double exact = 0, size = 0;
      for (size_t s = 0; s < scores.size(); ++s) {
        const double part = std::exp(scores[s] - most) / total * stored_values[s][static_cast<size_t>(d)];
        exact += part;
        size += std::fabs(part);
      }
      const double allowed = (2 * std::expm1(off) + 32 * kFloat + half_unit(cache_type)) * size +
                             half_unit(type) * std::fabs(exact);
      CHECK(std::fabs(z.at(d) - exact) <= allowed)
          << loops.isa << " D " << dim << " positions " << used << ": " << z.at(d) << " for " << exact;
    }
  }
  CHECK(z.intact() && query.intact());
}

// The formulas at their ends: short waves stay, long ones are stretched.
void rotary_scaling() {
  rlcc_model_config config{};
  config.head_dim = 64;
  config.rope_theta = 500000;
  config.rope_type = "default";
  const std::vector<float> plain = inverse_frequencies(config);
  CHECK(plain.size() == 32 && plain[0] == 1.0f);
  const std::string linear = R"({"rope_scaling": {"factor": 4.0, "rope_type": "linear"}})";
  config.rope_type = "linear";
  config.json = linear.c_str();
  config.json_bytes = static_cast<int64_t>(linear.size());
  const std::vector<float> stretched = inverse_frequencies(config);
  for (size_t i = 0; i < plain.size(); ++i) CHECK(stretched[i] == plain[i] / 4);
  const std::string llama3 =
      R"({"a": {}, "rope_parameters": {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0,)"
      R"( "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "factor": 77})";
  config.rope_type = "llama3";
  config.json = llama3.c_str();
  config.json_bytes = static_cast<int64_t>(llama3.size());
  const std::vector<float> bent = inverse_frequencies(config);
  CHECK(bent.front() == plain.front() && bent.back() == plain.back() / 8);
  for (size_t i = 0; i < plain.size(); ++i) CHECK(bent[i] <= plain[i] && bent[i] >= plain[i] / 8 * (1 - 1e-6f));
}

}  // namespace

int main() {
  for (const char* isa : {"scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16"}) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    std::mt19937 random(71);
    for (rlcc_dtype type : kTypes) {
      for (rlcc_dtype cache_type : kTypes) {
        const Loops& loops = loops_for(type, cache_type);
        norms(loops, type, random);
        gates(loops, type, random);
        if (type == RLCC_BF16) rounding(loops);
        largest(loops, random);
        for (int64_t dim : {2, 10, 16, 64, 80, 96, 128, 512}) {
          for (int64_t positions : {1, 2, 63, 64, 65, 200})
            attention(loops, type, cache_type, dim, positions, random);
        }
      }
    }
  }
  rotary_scaling();
  return report("decode_loops");
}
