// Packed models whose tensors are not what they should be: each is refused with a sentence that names the file.
#include <limits>

#include "model_refusals.h"

using namespace restorelcc::test;

namespace {

void tables() {
  const std::string norm = "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[40]";
  run_cases(
      "table", {},
      {
          {kPacked, "has 18446744073709551615 bytes", header_bytes(UINT64_MAX)},
          {kPacked, "has 9223372036854775807 bytes", header_bytes(INT64_MAX)},
          {kPacked, "has 100000001 bytes", header_bytes(100'000'001)},
          {kPacked, "its table: byte 0", header_bytes(0)},
          {kPacked, "its table: byte 1", header_bytes(1)},
          {kPacked, "its table is no JSON object",
           [](ModelFiles& f) { f.packed = with_table(serialised(f.arrays), "[]"); }},
          {kPacked, "its table is no JSON object",
           [](ModelFiles& f) {
             const std::string file = serialised(f.arrays);
             f.packed = with_table(file, " " + table_of(file));
           }},
          {kPacked, "bytes follow the last tensor",
           [](ModelFiles& f) { f.packed = serialised(f.arrays) + "x"; }},
          {kPacked, "lies at",
           [](ModelFiles& f) {
             f.packed = serialised(f.arrays);
             f.packed.pop_back();
           }},
          {kPacked, "the key model.norm.weight stands twice",
           table(norm,
                 "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[0,0]}," + norm)},
          {kPacked, "overlaps the tensor before it",
           table(norm, "\"x\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[3,4]}," + norm)},
          {kPacked, "has the type \"BF17\"", table(norm, replaced(norm, "BF16", "BF17"))},
          {kPacked, "has the type 5", table(norm, replaced(norm, "\"BF16\"", "5"))},
          {kPacked, "has no shape", table(norm, replaced(norm, "[40]", "40"))},
          {kPacked, "has the size -40", table(norm, replaced(norm, "[40]", "[-40]"))},
          {kPacked, "has the size 40.0", table(norm, replaced(norm, "[40]", "[40.0]"))},
          {kPacked, "more elements than 64 bits",
           table(norm, replaced(norm, "[40]", "[4294967296,4294967296]"))},
          {kPacked, "more bytes than 64 bits", table(norm, replaced(norm, "[40]", "[9223372036854775807]"))},
          {kPacked, "more than 4 dimensions", table(norm, replaced(norm, "[40]", "[1,1,1,1,40]"))},
          {kPacked, "is BF16 [41] in 80 bytes", table(norm, replaced(norm, "[40]", "[41]"))},
          {kPacked, "has no data_offsets",
           table(norm + ",\"data_offsets\":[", norm + ",\"data_offsets\":7,\"was\":[")},
          {kPacked, "has no data_offsets", table(norm + ",\"data_offsets\"", norm + ",\"was\"")},
          {kPacked, "lies at [-", table(norm + ",\"data_offsets\":[", norm + ",\"data_offsets\":[-")},
          {kPacked, "has the offsets [0,", table(norm + ",\"data_offsets\":[", norm + ",\"data_offsets\":[0,")},
          {kPacked, "has the type ", table("\"__metadata__\"", "\"__m__\"")},
          {kPacked, "__metadata__ is no object", table("\"__metadata__\":{", "\"__metadata__\":[],\"x\":{")},
          {kPacked, "__metadata__ holds what is no string", table("\"version\":\"1\"", "\"version\":1")},
          {kPacked, "zero byte in its name", table("\"model.norm.weight\"", "\"model.norm.weight\\u0000\"")},
      });
}

void weights() {
  const std::string m = kMatrix, j = kJoined;
  const std::string mask = m + ".mask", values = m + ".values", offsets = m + ".row_offsets",
                    shape = m + ".shape";
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  run_cases(
      "weight", with_all(),
      {
          {kPacked, "lacks the tensor model.layers.0.self_attn.o_proj.mask", drop(mask)},
          {kPacked, "lacks the tensor", drop(values)},
          {kPacked, "lacks the tensor", drop(offsets)},
          {kPacked, "lacks the tensor", drop(shape)},
          {kPacked, "lacks the tensor", drop(j + ".values")},
          {kPacked, "as [41, 48], the record says [40, 48]", element<int64_t>(shape, 0, 41)},
          {kPacked, "as [40, -48], the record says", element<int64_t>(shape, 1, -48)},
          {kPacked, "as [97, 40], the record says [96, 40]", element<int64_t>(j + ".shape", 0, 97)},
          {kPacked, "the model needs I64 [2]", reshaped(shape, "F64", {2})},
          {kPacked, "the model needs I64 [40, 1]", reshaped(mask, "I64", {39, 1})},
          {kPacked, "the model needs I64 [40, 1]", reshaped(mask, "I64", {40})},
          {kPacked, "the model needs I64 [40, 1]", reshaped(mask, "F64", {40, 1})},
          {kPacked, "the model needs BF16 [any]", reshaped(values, "F16", {1024})},
          {kPacked, "the model needs BF16 [any]", reshaped(values, "BF16", {1, 1024})},
          {kPacked, "the model needs I64 [41]", reshaped(offsets, "I64", {40})},
          {kPacked, "is damaged: weight.values has 0 elements", reshaped(values, "BF16", {0})},
          {kPacked, "truncated, or its padding is missing", reshaped(values, "BF16", {64})},
          {kPacked, "has a bit set beyond column 47", element<uint64_t>(mask, 3, ~uint64_t{0})},
          {kPacked, "row_offsets[0] is -8", element<int64_t>(offsets, 0, -8)},
          {kPacked, "row_offsets[1] is 0", element<int64_t>(offsets, 1, 0)},
          {kPacked, "row_offsets[40] is 9223372036854775807", element<int64_t>(offsets, kLast, kHuge)},
          {kPacked, "row_offsets[5] is -9223372036854775808",
           element<int64_t>(offsets, 5, std::numeric_limits<int64_t>::min())},
          {kPacked, "q_proj+k_proj+v_proj is damaged: weight.row_offsets[0] is 4",
           element<int64_t>(j + ".row_offsets", 0, 4)},
          {kPacked, "holds model.layers.0.self_attn.o_proj packed and dense",
           [=](ModelFiles& f) { f.arrays.push_back({m + ".weight", "BF16", {1}, "ab"}); }},
          {kPacked,
           "holds tensors that the model has no place for, such as model.layers.0.self_attn.k_proj.mask",
           [](ModelFiles& f) {
             f.arrays.push_back({"model.layers.0.self_attn.k_proj.mask", "BF16", {1}, "ab"});
           }},
          {kPacked, "such as a+b", [](ModelFiles& f) { f.arrays.push_back({"a+b", "BF16", {1}, "ab"}); }},
          {kPacked, "the model needs BF16 [40]", reshaped(m + ".bias", "BF16", {41})},
          {kPacked, "the model needs BF16 [40]", reshaped(m + ".bias", "F32", {40})},
          {kPacked, "lacks the tensor model.layers.0.self_attn.o_proj.bias", drop(m + ".bias")},
          {kPacked, "lacks the tensor lm_head.weight", drop("lm_head.weight")},
          {kPacked, "lacks the tensor model.norm.weight", drop("model.norm.weight")},
          {kPacked, "the model needs BF16 [32, 40]", reshaped("model.embed_tokens.weight", "BF16", {40, 32})},
          {kPacked, "the model needs BF16 [32, 40]", reshaped("model.embed_tokens.weight", "F32", {32, 40})},
          {kPacked, "lacks the tensor compensation.tax", drop("compensation.tax")},
          {kPacked, "lacks the tensor ffn_compensation.law", drop("ffn_compensation.law")},
          {kPacked, "needs F32 [2, any]", reshaped("compensation.law", "F32", {1, 48})},
          {kPacked, "needs F32 [2, any]", reshaped("compensation.law", "F16", {2, 48})},
          {kPacked, "needs F32 [2, 48]", reshaped("compensation.law", "F32", {2, 49})},
          {kPacked, "needs F32 [2, 40]", reshaped("ffn_compensation.tax", "F32", {2, 48})},
          {kPacked, "compensation.law has NaN",
           element<float>("compensation.law", 5, std::numeric_limits<float>::quiet_NaN())},
          {kPacked, "ffn_compensation.tax has NaN or infinite",
           element<float>("ffn_compensation.tax", kLast, -std::numeric_limits<float>::infinity())},
          {kPacked, "such as ffn_compensation.x",
           [](ModelFiles& f) { f.arrays.push_back({"ffn_compensation.x", "F32", {1}, "abcd"}); }},
          {kPacked, "lacks the tensor compensation.law",
           [](ModelFiles& f) {
             for (const char* name : {"law", "tax"}) {
               f.drop(std::string("compensation.") + name);
               f.drop(std::string("ffn_compensation.") + name);
             }
           }},
      });
  ModelOptions int8;
  int8.values = RLCC_I8;
  int8.head = true;
  run_cases("int8", int8,
            {
                {kPacked, "lacks the tensor model.layers.0.self_attn.o_proj.scales", drop(m + ".scales")},
                {kPacked, "the model needs BF16 [40, 1]", reshaped(m + ".scales", "BF16", {40})},
                {kPacked, "the model needs BF16 [40, 1]", reshaped(m + ".scales", "F32", {40, 1})},
                {kPacked, "the model needs BF16 [40, 2]",
                 reshaped("model.layers.1.mlp.down_proj.scales", "BF16", {40, 1})},
                {kPacked, "the model needs BF16 [any]", record("\"int8\"", "\"bf16\"")},
                {kPacked, "lacks the tensor lm_head.scales", drop("lm_head.scales")},
                {kPacked, "packs head as 32 x 40, its config.json has no such LM head",
                 [](ModelFiles& f) {
                   f.record = replaced(f.record, "\"lm_head\"", "\"head\"");
                   for (StoredArray& array : f.arrays) {
                     if (array.name.rfind("lm_head", 0) == 0) array.name = array.name.substr(3);
                   }
                 }},
            });
  ModelOptions dense;
  dense.dense_matrix = true;
  dense.ffn = true;
  const Directory directory;
  tiny_llama(dense).write(directory.path());  // never written so: what FFN compensations are added to is packed
  check_refused(directory.path(), kPacked, "has compensations, but model.layers.1.mlp.down_proj is not packed",
                "ffn");
  dense.ffn = false;
  run_cases(
      "dense", dense,
      {
          {kPacked, "lacks the tensor model.layers.1.mlp.down_proj.weight",
           drop("model.layers.1.mlp.down_proj.weight")},
          {kPacked, "needs BF16 [40, 136]", reshaped("model.layers.1.mlp.down_proj.weight", "BF16", {136, 40})},
      });
}

// Sizes at the border of 64 bits, in the record and in the file alike.
void sizes_that_overflow() {
  const auto lying = [](const char* rows, const char* columns, std::vector<int64_t> sizes) {
    return [=](ModelFiles& files) {
      const std::string entry = std::string("{\"name\": \"") + kMatrix + "\", \"rows\": ";
      files.record =
          replaced(files.record, entry + "40, \"columns\": 48", entry + rows + ", \"columns\": " + columns);
      StoredArray& shape = files.array(std::string(kMatrix) + ".shape");
      std::memcpy(shape.bytes.data(), sizes.data(), 16);
    };
  };
  constexpr int64_t kMost = INT64_MAX;
  run_cases("overflow", {},
            {
                {kPacked, "too many rows", lying("9223372036854775807", "48", {kMost, 48})},
                {kPacked, "the model needs I64 [9223372036854775806, 1]",
                 lying("9223372036854775806", "48", {kMost - 1, 48})},
                {kPacked, "the model needs I64 [40, 144115188075855872]",
                 lying("40", "9223372036854775807", {40, kMost})},
                {kPacked, "too many rows",
                 [](ModelFiles& files) {
                   const std::string k = "k_proj\", \"rows\": ";
                   files.record = replaced(files.record, k + "24", k + "9223372036854775807");
                 }},
            });
}

// Every file cut at every length of a small step.
void truncated() {
  const ModelFiles good = tiny_llama({});
  const std::string packed = serialised(good.arrays);
  for (size_t cut = 0; cut < packed.size(); cut += 1 + cut / 8) {
    const Directory directory;
    ModelFiles files = good;
    files.packed = packed.substr(0, cut);
    files.write(directory.path());
    if (cut == 0) write_file(directory.path() + "/packed.safetensors", "");
    check_refused(directory.path(), kPacked, "is truncated or not a safetensors file",
                  "cut at " + std::to_string(cut));
  }
}

}  // namespace

int main() {
  tables();
  weights();
  sizes_that_overflow();
  truncated();
  return report("model_refused_tensors");
}
