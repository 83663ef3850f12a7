/* The header is C99, and a C program links and runs. */
#include <stdio.h>
#include <string.h>

#include "restorelcc/restorelcc.h"

int main(void) {
  const float weight[2][3] = {{1.0f, 0.0f, 2.0f}, {0.0f, 0.0f, -3.0f}};
  const float x[3] = {10.0f, 20.0f, 30.0f};
  float y[2] = {0.0f, 0.0f};
  uint64_t mask[2];
  float values[64];
  int64_t row_offsets[3], value_count = 0, kernel_count = 0;
  const rlcc_kernel_info* kernels = NULL;
  rlcc_sparse_linear_params params;

  if (rlcc_pack_count(weight, 2, 3, 3, RLCC_F32, RLCC_F32, &value_count) != RLCC_OK || value_count > 60) return 1;
  if (rlcc_pack(weight, 2, 3, 3, RLCC_F32, RLCC_F32, mask, values, value_count, row_offsets, NULL) != RLCC_OK) {
    printf("%s\n", rlcc_last_error()); /* the array may lie at 8 bytes: refused, not crashed */
    return strstr(rlcc_last_error(), "aligned") != NULL ? 0 : 2;
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
  return 0;
}
