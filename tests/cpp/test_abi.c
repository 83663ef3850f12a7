/* The headers are C99, and a C program links, runs, and opens the packed model that it is given. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "restorelcc/model.h"
#include "restorelcc/restorelcc.h"

/* One projection of the first layer, of x = 1. */
static int run_model(const char* directory) {
  rlcc_model* model = NULL;
  rlcc_model_config config;
  rlcc_weight weight;
  rlcc_tensor norm;
  rlcc_sparse_linear_params params;
  float *x, *y;
  int64_t k;
  rlcc_status status;

  if (rlcc_model_open(directory, &model) != RLCC_OK || rlcc_model_get_config(model, &config) != RLCC_OK ||
      rlcc_model_weight(model, "model.layers.0.mlp.down_proj", &weight) != RLCC_OK ||
      rlcc_model_tensor(model, "model.norm.weight", &norm) != RLCC_OK) {
    printf("%s\n", rlcc_last_error());
    return 10;
  }
  if (weight.weight.rows != config.hidden_size || weight.weight.columns != config.intermediate_size) return 11;
  if (norm.dimensions != 1 || norm.shape[0] != config.hidden_size || norm.dtype != RLCC_BF16) return 12;
  if (rlcc_model_has(model, weight.name) != 2 || strcmp(weight.name, weight.joined) != 0) return 13;
  x = malloc(sizeof(float) * (size_t)weight.weight.columns);
  y = malloc(sizeof(float) * (size_t)weight.weight.rows);
  if (x == NULL || y == NULL) return 14;
  for (k = 0; k < weight.weight.columns; ++k) x[k] = 1.0f;
  memset(&params, 0, sizeof(params));
  params.weight = weight.weight;
  params.x = x;
  params.x_rows = 1;
  params.x_stride = weight.weight.columns;
  params.y = y;
  params.y_stride = weight.weight.rows;
  status = rlcc_sparse_linear(&params);
  printf("%s: %d layers of %d, y[0] = %g\n", config.model_type, (int)config.layers, (int)config.hidden_size, y[0]);
  free(x);
  free(y);
  rlcc_model_close(model);
  return status == RLCC_OK ? 0 : 15;
}

int main(int argc, char** argv) {
  const float weight[2][3] = {{1.0f, 0.0f, 2.0f}, {0.0f, 0.0f, -3.0f}};
  const float x[3] = {10.0f, 20.0f, 30.0f};
  float y[2] = {0.0f, 0.0f};
  uint64_t mask[2];
  float storage[68], *values = storage;
  int64_t row_offsets[3], value_count = 0, kernel_count = 0;
  const rlcc_kernel_info* kernels = NULL;
  rlcc_sparse_linear_params params;

  if (rlcc_pack_count(weight, 2, 3, 3, RLCC_F32, RLCC_F32, &value_count) != RLCC_OK || value_count > 60) return 1;
  if (rlcc_pack(weight, 2, 3, 3, RLCC_F32, RLCC_F32, mask, (char*)storage + 2, value_count, row_offsets, NULL) !=
          RLCC_INVALID_ARGUMENT ||
      strstr(rlcc_last_error(), "aligned") == NULL) {
    return 2;
  }
  while ((uintptr_t)values % RLCC_VALUE_ALIGNMENT_BYTES != 0) ++values;
  if (rlcc_pack(weight, 2, 3, 3, RLCC_F32, RLCC_F32, mask, values, value_count, row_offsets, NULL) != RLCC_OK) {
    return 8;
  }
  memset(&params, 0, sizeof(params));
  params.weight.rows = 2;
  params.weight.columns = 3;
  params.weight.mask = mask;
  params.weight.values = values;
  params.weight.value_count = value_count;
  params.weight.row_offsets = row_offsets;
  params.x = x;
  params.x_rows = 1;
  params.x_stride = 3;
  params.y = y;
  params.y_stride = 2;
  if (rlcc_sparse_linear(&params) != RLCC_OK) {
    printf("%s\n", rlcc_last_error());
    return 3;
  }
  if (y[0] != 70.0f || y[1] != -90.0f) return 4;
  if (strlen(rlcc_last_error()) != 0) return 5;
  if (rlcc_sparse_linear(NULL) != RLCC_INVALID_ARGUMENT || strlen(rlcc_last_error()) == 0) return 6;
  if (rlcc_kernels(&kernels, &kernel_count) != RLCC_OK || kernel_count < 8) return 7;
  printf("%s\n", rlcc_build_info());
  return argc > 1 ? run_model(argv[1]) : 0;
}
