// As test_allocation_failures.cpp: opening models and asking them, settings, and the first call of a process.
#include "failing_calls.h"
#include "matrices.h"
#include "model_files.h"
#include "restorelcc/model.h"

using namespace restorelcc::test;

namespace {

// What a model says, where all of it is there.
struct Seen {
  rlcc_model_config config;
  rlcc_tensor tensor;
  rlcc_weight weight;
};

// Opened, looked at, closed.
rlcc_status look_at(const std::string& directory, int64_t (&found)[4]) {
  rlcc_model* model = nullptr;
  const rlcc_status status = rlcc_model_open(directory.c_str(), &model);
  if (status != RLCC_OK) return model == nullptr ? status : RLCC_INTERNAL;
  Seen seen{};
  const bool good = rlcc_model_get_config(model, &seen.config) == RLCC_OK &&
                    rlcc_model_tensor_at(model, 1, &seen.tensor) == RLCC_OK &&
                    rlcc_model_weight(model, "model.layers.1.mlp.down_proj", &seen.weight) == RLCC_OK;
  const int64_t now[4] = {seen.config.eos_token_count, seen.tensor.bytes, seen.weight.rows,
                          rlcc_model_tensor_count(model)};
  if (good) std::memcpy(found, now, sizeof(now));
  rlcc_model_close(model);
  return good ? RLCC_OK : RLCC_INTERNAL;
}

void models() {
  for (const rlcc_dtype values : {RLCC_BF16, RLCC_I8}) {
    ModelOptions options;
    options.values = values;
    options.joined = values == RLCC_BF16;
    options.heads = options.ffn = options.head = values == RLCC_I8;
    for (const size_t shift : {0, 3}) {
      const Directory directory;
      ModelFiles files = tiny_llama(options);
      files.shift = shift;
      files.write(directory.path());
      int64_t found[4];
      run({std::string("model_open ") + dtype_name(values) + " shifted by " + std::to_string(shift),
           [&] { return look_at(directory.path(), found); },
           {{found, sizeof(found)}}});
    }
  }
  const std::pair<const char*, std::function<void(ModelFiles&)>> lies[] = {
      {"record",
       [](ModelFiles& files) { files.record = replaced(files.record, "\"version\": 1", "\"version\": 2"); }},
      {"json", [](ModelFiles& files) { files.config.pop_back(), files.config.pop_back(); }},
      {"tensor", [](ModelFiles& files) { files.drop("model.norm.weight"); }},
      {"offsets",
       [](ModelFiles& files) { files.array("model.layers.0.self_attn.o_proj.row_offsets").bytes[0] = 5; }},
  };
  for (const auto& [name, lie] : lies) {
    const Directory directory;
    ModelFiles files = tiny_llama({});
    lie(files);
    files.write(directory.path());
    run({std::string("model_open refused for its ") + name,
         [&] {
           rlcc_model* model = nullptr;
           const rlcc_status status = rlcc_model_open(directory.path().c_str(), &model);
           return model == nullptr ? status : RLCC_INTERNAL;
         },
         {},
         RLCC_INVALID_ARGUMENT});
  }
}

void what_is_asked_of_a_model() {
  ModelOptions options;
  options.heads = true;
  const Directory directory;
  tiny_llama(options).write(directory.path());
  rlcc_model* model = nullptr;
  CHECK_STATUS(rlcc_model_open(directory.path().c_str(), &model), RLCC_OK);
  rlcc_tensor tensor;
  rlcc_weight weight;
  rlcc_compensation compensation;
  rlcc_model_config config;
  run({"model_get_config", [&] { return rlcc_model_get_config(model, &config); }, {{&config, sizeof(config)}}});
  run({"model_tensor_at",
       [&] { return rlcc_model_tensor_at(model, 0, &tensor); },
       {{&tensor, sizeof(tensor)}}});
  run({"model_weight_at",
       [&] { return rlcc_model_weight_at(model, 2, &weight); },
       {{&weight, sizeof(weight)}}});
  run({"model_weight_at, none",
       [&] { return rlcc_model_weight_at(model, -1, &weight); },
       {{&weight, sizeof(weight)}},
       RLCC_INVALID_ARGUMENT});
  run({"model_tensor_at, none",
       [&] { return rlcc_model_tensor_at(model, INT64_MAX, &tensor); },
       {{&tensor, sizeof(tensor)}},
       RLCC_INVALID_ARGUMENT});
  run({"model_tensor",
       [&] { return rlcc_model_tensor(model, "model.norm.weight", &tensor); },
       {{&tensor, sizeof(tensor)}}});
  run({"model_weight, none",
       [&] { return rlcc_model_weight(model, "none", &weight); },
       {{&weight, sizeof(weight)}},
       RLCC_INVALID_ARGUMENT});
  run({"model_weight",
       [&] { return rlcc_model_weight(model, "model.layers.1.mlp.down_proj", &weight); },
       {{&weight, sizeof(weight)}}});
  run({"model_tensor, none",
       [&] { return rlcc_model_tensor(model, "none", &tensor); },
       {{&tensor, sizeof(tensor)}},
       RLCC_INVALID_ARGUMENT});
  run({"model_compensation_at",
       [&] { return rlcc_model_compensation_at(model, 1, &compensation); },
       {{&compensation, sizeof(compensation)}}});
  run({"model_compensation_at, none",
       [&] { return rlcc_model_compensation_at(model, 2, &compensation); },
       {{&compensation, sizeof(compensation)}},
       RLCC_INVALID_ARGUMENT});
  // These have no status, so they may not need memory.
  const long live = live_allocations();
  arm(0, true);
  const bool answered = rlcc_model_has(model, "model.layers.1.mlp.down_proj") == 2 &&
                        rlcc_model_has(model, "model.norm.weight") == 1 && rlcc_model_has(model, "none") == 0 &&
                        rlcc_model_tensor_count(model) > 0 && rlcc_model_weight_count(model) == 14 &&
                        rlcc_model_compensation_count(model) == 2 &&
                        rlcc_model_default_compensation(model) == 0;
  const bool failed = disarm();
  CHECK(answered && !failed && live_allocations() == live);
  arm(0, true);
  rlcc_model_close(model);
  CHECK(!disarm() && live_allocations() < live);
}

void settings() {
  const rlcc_kernel_info* kernels = nullptr;
  int64_t count = 0;
  run({"kernels",
       [&] { return rlcc_kernels(&kernels, &count); },
       {{&kernels, sizeof(kernels)}, {&count, sizeof(count)}}});
  run({"force_isa", [] { return rlcc_force_isa("scalar"); }, {}});
  run({"force_isa, none",
       [] { return rlcc_force_isa("of tomorrow, with a long name"); },
       {},
       RLCC_UNSUPPORTED});
  rlcc_force_isa(nullptr);
  run({"set_num_threads", [] { return rlcc_set_num_threads(2); }, {}});
  run({"set_num_threads, none", [] { return rlcc_set_num_threads(0); }, {}, RLCC_INVALID_ARGUMENT});
  // These return a text: an empty one where there is no memory for it.
  run({"build_info",
       [] { return std::strcmp(rlcc_build_info(), "{}") == 0 ? RLCC_OUT_OF_MEMORY : RLCC_OK; },
       {}});
}

}  // namespace

int main() {
  rlcc_set_num_threads(2);
  rlcc_isa();  // reads the environment, once
  settings();
  models();
  what_is_asked_of_a_model();
  return report("allocation_failures_model");
}
