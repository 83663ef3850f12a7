/* Prints a line of a packed model's configuration. */
#include <restorelcc/model.h>
#include <restorelcc/restorelcc.h>
#include <stdio.h>

int main(int argc, char** argv) {
  rlcc_model* model = NULL;
  rlcc_model_config config;

  if (argc != 2) return 2;
  if (rlcc_model_open(argv[1], &model) != RLCC_OK || rlcc_model_get_config(model, &config) != RLCC_OK) {
    fprintf(stderr, "%s\n", rlcc_last_error());
    return 1;
  }
  printf("%s %s layers %d hidden %d heads %d/%d weights %d\n", config.model_type, config.values, (int)config.layers,
         (int)config.hidden_size, (int)config.heads, (int)config.kv_heads, (int)rlcc_model_weight_count(model));
  rlcc_model_close(model);
  return 0;
}
