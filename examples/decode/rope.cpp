#include "rope.h"

#include <cmath>
#include <cstdlib>
#include <string>

#include "refusal.h"

namespace decode {
namespace {

constexpr double kPi = 3.14159265358979323846;

// The number called `key` among the parameters of the rotary positions, an object of numbers and strings in the
// text of config.json, which the library has parsed. Throws Refusal where there is none above 0.
double parameter(const rlcc_model_config& config, const std::string& key) {
  const std::string text(config.json, static_cast<size_t>(config.json_bytes));
  for (const char* const object : {"\"rope_parameters\"", "\"rope_scaling\""}) {
    const size_t at = text.find(object);
    if (at == std::string::npos) continue;
    const size_t begin = text.find('{', at), end = text.find('}', at);
    if (begin == std::string::npos || end == std::string::npos || end < begin) continue;
    const std::string inside = text.substr(begin, end - begin), name = "\"" + key + "\"";
    const size_t found = inside.find(name);
    if (found == std::string::npos) continue;
    const size_t colon = inside.find(':', found + name.size());
    if (colon == std::string::npos) continue;
    const double value = std::strtod(inside.c_str() + colon + 1, nullptr);
    if (std::isfinite(value) && value > 0) return value;
  }
  refuse("the rotary positions of type \"", config.rope_type, "\" have no ", key, " above 0 in config.json");
}

}  // namespace

std::vector<float> inverse_frequencies(const rlcc_model_config& config) {
  const std::string type = config.rope_type == nullptr ? "" : config.rope_type;
  if (type != "default" && type != "linear" && type != "llama3") {
    refuse("the model's rotary positions are of type \"", type,
           "\"; this program knows default, linear and llama3");
  }
  if (!(config.rope_theta > 0)) refuse("rope_theta is ", config.rope_theta, ", must be above 0");
  std::vector<float> frequencies;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    // Exponent, power and reciprocal are each rounded to fp32, as stock transformers do.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    frequencies.push_back(1.0f /
                          static_cast<float>(std::pow(config.rope_theta, static_cast<double>(exponent))));
  }
  if (type == "default") return frequencies;
  const double factor = parameter(config, "factor");
  if (type == "linear") {
    for (float& f : frequencies) f = static_cast<float>(f / factor);
    return frequencies;
  }
  // llama3: long waves are stretched by the factor, short ones left alone, those between interpolated.
  const double low = parameter(config, "low_freq_factor"), high = parameter(config, "high_freq_factor");
  const double trained = parameter(config, "original_max_position_embeddings");
  if (!(high > low)) refuse("high_freq_factor is ", high, ", must be above low_freq_factor, ", low);
  for (float& f : frequencies) {
    const double waves = trained * f / (2 * kPi);  // in the length that the model was trained on
    const double kept = waves < low ? 0 : waves > high ? 1 : (waves - low) / (high - low);
    f = static_cast<float>((1 - kept) * f / factor + kept * f);
  }
  return frequencies;
}

Rope::Rope(const rlcc_model_config& config, int64_t positions) : half_(config.head_dim / 2) {
  const std::vector<float> frequencies = inverse_frequencies(config);
  cosines_.reserve(static_cast<size_t>(positions * half_));
  sines_.reserve(static_cast<size_t>(positions * half_));
  for (int64_t position = 0; position < positions; ++position) {
    for (const float frequency : frequencies) {
      const float angle =
          static_cast<float>(position) * frequency;  // rounded to fp32, as stock transformers do
      cosines_.push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
      sines_.push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
    }
  }
}

}  // namespace decode
