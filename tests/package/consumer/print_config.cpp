// Prints a line of a packed model's configuration.
#include <restorelcc/cuda.h>
#include <restorelcc/model.h>
#include <restorelcc/restorelcc.h>

#include <cstdio>
#include <memory>

struct Close {
  void operator()(rlcc_model* model) const { rlcc_model_close(model); }
};

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  rlcc_model* opened = nullptr;
  const rlcc_status status = rlcc_model_open(argv[1], &opened);
  const std::unique_ptr<rlcc_model, Close> model(opened);
  rlcc_model_config config{};
  if (status != RLCC_OK || rlcc_model_get_config(model.get(), &config) != RLCC_OK) {
    std::fprintf(stderr, "%s\n", rlcc_last_error());
    return 1;
  }
  std::printf("%s %s layers %lld hidden %lld heads %lld/%lld weights %lld\n", config.model_type, config.values,
              static_cast<long long>(config.layers), static_cast<long long>(config.hidden_size),
              static_cast<long long>(config.heads), static_cast<long long>(config.kv_heads),
              static_cast<long long>(rlcc_model_weight_count(model.get())));
}
