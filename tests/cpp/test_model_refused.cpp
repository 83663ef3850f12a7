// Packed models whose JSON is not what it should be, or whose files are none: each is refused with a sentence
// that names the file.
#include <filesystem>

#include "model_refusals.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/stat.h>
#endif

using namespace restorelcc::test;

namespace {

void json_that_is_none() {
  const std::pair<const char*, const char*> texts[] = {
      {"", "a value is missing"},
      {"{", "a key is missing"},
      {"{\"a\": 1", "a comma or } is missing"},
      {"{\"a\" 1}", "a colon is missing"},
      {"{\"a\": }", "a value is missing"},
      {"{\"a\": 1,}", "a key is missing"},
      {"{\"a\": [1,]}", "a value is missing"},
      {"{\"a\": [1 2]}", "a comma or ] is missing"},
      {"{\"a\": 01}", "a comma or } is missing"},
      {"{\"a\": 1.}", "a form that JSON does not have"},
      {"{\"a\": -}", "a form that JSON does not have"},
      {"{\"a\": 1e}", "a form that JSON does not have"},
      {"{\"a\": +1}", "a value is missing"},
      {"{\"a\": NaN}", "a value is missing"},
      {"{\"a\": Infinity}", "a value is missing"},
      {"{\"a\": nul}", "a value is missing"},
      {"{\"a\": tru", "a value is missing"},
      {"{'a': 1}", "a key is missing"},
      {"{\"a\": 1} x", "something follows the value"},
      {"{} {}", "something follows the value"},
      {"\xef\xbb\xbf{}", "a value is missing"},
      {"[1]", "holds no JSON object"},
      {"7", "holds no JSON object"},
      {"{\"a\": \"x}", "a string does not end"},
      {"{\"a\": \"\n\"}", "a control character"},
      {"{\"a\": \"\\x\"}", "an escape that JSON does not have"},
      {"{\"a\": \"\\", "an escape that JSON does not have"},
      {"{\"a\": \"\\u12", "an escape that JSON does not have"},
      {"{\"a\": \"\\u12g4\"}", "an escape that JSON does not have"},
      {"{\"a\": \"\\ud800\"}", "half of a pair of surrogates"},
      {"{\"a\": \"\\udc00\"}", "half of a pair of surrogates"},
      {"{\"a\": \"\\ud800\\u0041\"}", "half of a pair of surrogates"},
      {"{\"a\": \"\xff\"}", "no UTF-8"},
      {"{\"a\": \"\xc0\xaf\"}", "no UTF-8"},
      {"{\"a\": \"\xed\xa0\x80\"}", "no UTF-8"},
      {"{\"a\": \"\xf4\x90\x80\x80\"}", "no UTF-8"},
      {"{\"a\": \"\xe2\x82\"}", "no UTF-8"},
      {"{\"a\": 1, \"b\": 2, \"a\": 3}", "the key a stands twice"},
      {"{\"x\": [{\"a\": 1, \"\\u0061\": 2}]}", "the key a stands twice"},
      {"{\"a\n\": 1}", "a control character"},
      {"{\"\\n\\u0000\": 1, \"\\n\\u0000\": 1}", "the key \\x0a\\x00 stands twice"},
      {"// no\n{}", "a value is missing"},
  };
  std::vector<Case> cases;
  for (const auto& [text, words] : texts) {
    const std::string copy = text;
    for (const char* file : {kRecord, kConfig, "generation_config.json"}) {
      cases.push_back({file, words, [=](ModelFiles& files) {
                         std::string& place = file == kRecord   ? files.record
                                              : file == kConfig ? files.config
                                                                : files.generation;
                         place = copy.empty() ? " " : copy;
                       }});
    }
  }
  const auto deep = [](const char* open, int times, const char* close) {
    std::string text = "{\"a\": ";
    for (int i = 0; i < times; ++i) text += open;
    text += "1";
    for (int i = 0; i < times; ++i) text += close;
    return text + "}";
  };
  const std::string lists = deep("[", 64, "]"), objects = deep("{\"a\":", 100'000, "}");
  std::string values = "{\"a\": [0";
  for (int i = 0; i < (1 << 22); ++i) values += ",0";
  cases.push_back({kConfig, "more than 64 values inside", [=](ModelFiles& f) { f.config = lists; }});
  cases.push_back({kConfig, "more than 64 values inside", [=](ModelFiles& f) { f.config = objects; }});
  cases.push_back({kConfig, "more than 4,194,304 values", [=](ModelFiles& f) { f.config = values + "]}"; }});
  cases.push_back(
      {kConfig, "more than the 67108864", [](ModelFiles& f) { f.config.resize((64u << 20) + 1, ' '); }});
  run_cases("json", {}, cases);
}

void records() {
  const std::string q = "\"model.layers.0.self_attn.q_proj\"",
                    o = std::string("{\"name\": \"") + kMatrix + "\"";
  run_cases(
      "record", with_all(),
      {
          {kRecord, "version 0; this release reads", record("\"version\": 1", "\"version\": 0")},
          {kRecord, "version 2; this release reads", record("\"version\": 1", "\"version\": 2")},
          {kRecord, "version 1.0; this", record("\"version\": 1", "\"version\": 1.0")},
          {kRecord, "version \"1\"; this", record("\"version\": 1", "\"version\": \"1\"")},
          {kRecord, "version 18446744073709551617; this",
           record("\"version\": 1", "\"version\": 18446744073709551617")},
          {kRecord, "version missing", record("\"version\"", "\"w\"")},
          {kRecord, "has format \"other\"", record("\"restorelcc-packed\"", "\"other\"")},
          {kRecord, "has format missing", record("\"format\"", "\"g\"")},
          {kRecord, "values is \"int4\", not one of", record("\"bf16\"", "\"int4\"")},
          {kRecord, "values is missing", record("\"values\"", "\"w\"")},
          {kRecord, "packed is missing, not a list", record("\"packed\"", "\"q\"")},
          {kRecord, "dense is missing", record("\"dense\"", "\"q\"")},
          {kRecord, "joined is missing", record("\"joined\"", "\"q\"")},
          {kRecord, "compensations is missing", record("\"compensations\"", "\"q\"")},
          {kRecord, "default is missing", record("\"default\"", "\"q\"")},
          {kRecord, "default is \"lax\", none of", record("\"default\": \"law\"", "\"default\": \"lax\"")},
          {kRecord, "cannot name a compensation", record("[\"law\", \"tax\"]", "[\"none\"]")},
          {kRecord, "cannot name a compensation", record("[\"law\", \"tax\"]", "[\"../law\"]")},
          {kRecord, "cannot name a compensation", record("[\"law\", \"tax\"]", "[\"\\u00e4\"]")},
          {kRecord, "cannot name a compensation", record("[\"law\", \"tax\"]", "[7]")},
          {kRecord, "cannot name a compensation", record("[\"law\"", "[\"" + std::string(65, 'a') + "\"")},
          {kRecord, "the compensation law is listed twice", record("\"tax\"]", "\"law\"]")},
          {kRecord, "a matrix is 7, not an object", record(o, "7, " + o)},
          {kRecord, "is no name of a module", record(o, "{\"name\": \"\"")},
          {kRecord, "is no name of a module", record(o, "{\"name\": \"../x\"")},
          {kRecord, "is no name of a module", record(o, "{\"name\": \"a/b\"")},
          {kRecord, "is no name of a module", record(o, "{\"name\": \"a+b\"")},
          {kRecord, "is no name of a module", record(o, "{\"name\": \"a\\n\"")},
          {kRecord, "is no name of a module", record(o, "{\"name\": \"" + std::string(201, 'a') + "\"")},
          {kRecord, "rows of model.layers.0.self_attn.o_proj is -40",
           record(o + ", \"rows\": ", o + ", \"rows\": -")},
          {kRecord, "o_proj is 4.0e1", record(o + ", \"rows\": 40", o + ", \"rows\": 4.0e1")},
          {kRecord, "o_proj is true", record(o + ", \"rows\": 40", o + ", \"rows\": true")},
          {kRecord, "o_proj is 99999999999999999999",
           record(o + ", \"rows\": 40", o + ", \"rows\": 99999999999999999999")},
          {kRecord, "is missing", record(o + ", \"rows\"", o + ", \"r\"")},
          {kRecord, "q_proj is listed twice", record(o, "{\"name\": " + q)},
          {kRecord, "q_proj is joined twice", record("\"joined\": [[" + q, "\"joined\": [[" + q + ", " + q)},
          {kRecord, "is joined, but not packed", record("\"joined\": [[" + q, "\"joined\": [[\"lm_head\"")},
          {kRecord, "not a list of names", record("\"joined\": [[" + q, "\"joined\": [[], [" + q)},
          {kRecord, "not a list of names", record("\"joined\": [[" + q, "\"joined\": [[" + q + "], [" + q)},
          {kRecord, "not a list of names",
           record("\"joined\": [[" + q, "\"joined\": [{\"a\": 1, \"b\": 2}, [" + q)},
          {kRecord, "is joined to one of 40 columns, it has 48",
           record("\"joined\": [[" + q, "\"joined\": [[" + q + ", \"" + kMatrix + "\"")},
          {kRecord, "a matrix is 5, not an object", record("\"head\": null", "\"head\": 5")},
      });
}

void configurations() {
  run_cases(
      "configuration", with_all(),
      {
          {kConfig, "it has no model_type", config("\"model_type\"", "\"m\"")},
          {kConfig, "it has no model_type", config("\"llama\"", "\"a\\u0000b\"")},
          {kConfig, "hidden_size is missing", config("\"hidden_size\"", "\"h\"")},
          {kConfig, "hidden_size is 0, not a size", config("\"hidden_size\": 40", "\"hidden_size\": 0")},
          {kConfig, "hidden_size is -40", config("\"hidden_size\": 40", "\"hidden_size\": -40")},
          {kConfig, "hidden_size is 40.0", config("\"hidden_size\": 40", "\"hidden_size\": 40.0")},
          {kConfig, "hidden_size is 4294967336", config("\"hidden_size\": 40", "\"hidden_size\": 4294967336")},
          {kConfig, "head_dim is \"x\", not a size", config("\"head_dim\": 12", "\"head_dim\": \"x\"")},
          {kConfig, "no multiple of", config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3")},
          {kConfig, "num_hidden_layers is 10001, more than 10000",
           config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 10001")},
          {kConfig, "more_layers is 99999999999999999999",
           config("{", "{\"x\": [{\"more_layers\": 99999999999999999999}], ")},
          {"", "has 15 layers, the record 14 matrices",
           config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 15")},
          {kConfig, "rms_norm_eps is -1e-05", config("1e-05", "-1e-05")},
          {kConfig, "rms_norm_eps is \"x\"", config("1e-05", "\"x\"")},
          {kConfig, "rope_theta is 1e999", config("5000.0", "1e999")},
          {kConfig, "rope_parameters is [], not an object",
           config("{\"rope_theta\": 5000.0, \"rope_type\": \"default\"}", "[]")},
          {kConfig, "rope_type is 7, not a name", config("\"rope_type\": \"default\"", "\"rope_type\": 7")},
          {kConfig, "hidden_act is [], not a name", config("\"silu\"", "[]")},
          {kConfig, "attention_bias is 1, not", config("\"attention_bias\": true", "\"attention_bias\": 1")},
          {kConfig, "eos_token_id has \"x\"", config("\"eos_token_id\": 2", "\"eos_token_id\": \"x\"")},
          {"generation_config.json", "eos_token_id has -2",
           [](ModelFiles& files) { files.generation = "{\"eos_token_id\": [1, -2]}"; }},
          // sizes that the tensors do not have
          {kPacked, "the model needs BF16 [31, 40]", config("\"vocab_size\": 32", "\"vocab_size\": 31")},
          {kPacked, "q_proj as 48 x 40, its config.json has 96 x 40",
           config("\"head_dim\": 12", "\"head_dim\": 24")},
          {kPacked, "k_proj as 24 x 40, its config.json has 48 x 40",
           config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4")},
          {kPacked, "holds compensation.law as F32 [2, 48], the model needs F32 [1, any]",
           config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")},
          {kPacked, "needs F32 [3, any]", config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")},
          {kPacked, "q_proj.bias, its config.json has none",
           config("\"attention_bias\": true", "\"attention_bias\": false")},
          {kPacked, "no place for, such as lm_head.weight",
           config("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true")},
      });
  run_cases("layers", {},
            {{kPacked, "down_proj as 40 x 136, its config.json has no such matrix",
              config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")},
             {kPacked, "lacks the tensor model.layers.2.self_attn.q_proj",
              config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")}});
}

#if defined(__unix__) || defined(__APPLE__)
// What stands in place of a file. None is waited for.
void no_files() {
  const ModelFiles good = tiny_llama({});
  for (const char* name : {kRecord, kConfig, kPacked, "generation_config.json"}) {
    const auto refused = [&](const char* words, const std::function<void(const std::string&)>& put) {
      const Directory directory;
      good.write(directory.path());
      const std::string path = directory.path() + "/" + name;
      std::filesystem::remove(path);
      put(path);
      check_refused(directory.path(), name, words, std::string(name) + " as " + words);
    };
    refused("is not a file", [](const std::string& path) { std::filesystem::create_directory(path); });
    refused("is not a file", [](const std::string& path) { CHECK(mkfifo(path.c_str(), 0600) == 0); });
    refused("is not a file",
            [](const std::string& path) { std::filesystem::create_symlink("/dev/zero", path); });
    refused("cannot be read", [](const std::string& path) { std::filesystem::create_symlink(path, path); });
    if (std::string(name) != "generation_config.json") refused("does not exist", [](const std::string&) {});
    if (name != kPacked) {  // a hole: large, and costs nothing to make
      refused("more than the 67108864", [](const std::string& path) {
        write_file(path, "{}");
        std::filesystem::resize_file(path, uint64_t{3} << 30);
      });
    } else {
      refused("its table", [](const std::string& path) {
        write_file(path, "");
        std::filesystem::resize_file(path, uint64_t{3} << 30);
      });
      refused("0 bytes", [](const std::string& path) { write_file(path, ""); });
    }
  }
  const Directory directory;
  const std::string file = directory.path() + "/file";
  write_file(file, "x");
  check_refused(file, kRecord, "cannot be read", "a file in place of the directory");
  check_refused(directory.path() + "/none", kRecord, "does not exist", "no directory");
  check_refused("", kRecord, "", "an empty name");
}
#endif

}  // namespace

int main() {
  json_that_is_none();
  records();
  configurations();
#if defined(__unix__) || defined(__APPLE__)
  no_files();
#else
  skip("pipes and links in place of files: this system has none");
#endif
  return report("model_refused");
}
