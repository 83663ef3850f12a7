// The choices of csrc/cuda/tile_plan.h on the shapes of real layers and on the devices built for.
#include "../cpp/check.h"
#include "cuda/tile_plan.h"

using namespace restorelcc::cuda;

namespace {

constexpr DeviceInfo kA100{108, 163 << 10}, kH100{132, 227 << 10}, kRtx4090{128, 99 << 10}, kTiny{1, 99 << 10};

rlcc_packed_weight weight(int64_t rows, int64_t columns, rlcc_dtype dtype) {
  rlcc_packed_weight w{};
  w.rows = rows;
  w.columns = columns;
  w.dtype = dtype;
  return w;
}

void check_split(const TilePlan& plan, int64_t rows, int64_t columns, int64_t depth, const DeviceInfo& device) {
  const int64_t steps = divide_up(depth, kStepDepth);
  CHECK(int64_t{plan.splits} * plan.steps_per_split >= steps) << "every step is somebody's";
  CHECK(int64_t{plan.splits - 1} * plan.steps_per_split < std::max<int64_t>(steps, 1)) << "nobody is idle";
  CHECK(plan.splits >= 1 && plan.splits <= 64 && plan.steps_per_split % kSplitSteps == 0 &&
        plan.steps_per_split > 0);
  CHECK(plan.splits == 1 || plan.steps_per_split >= 16) << "a split has something to do";
  CHECK(plan.splits == 1 || tiles_of(plan.tile, rows, columns) < 2 * device.multiprocessors);
  CHECK((partials_bytes(plan, rows, columns) == 0) == (plan.splits == 1 || rows * columns == 0));
}

void every_problem() {
  for (const DeviceInfo& device : {kA100, kH100, kRtx4090, kTiny}) {
    for (int64_t outputs : {1, 64, 576, 4096, 14336, 128256}) {
      for (int64_t columns : {0, 1, 127, 576, 4096, 14336, 53248}) {
        for (int64_t rows : {1, 17, 64, 65, 512, 8192}) {
          for (rlcc_dtype values : {RLCC_F32, RLCC_BF16, RLCC_F16, RLCC_I8}) {
            const auto w = weight(outputs, columns, values);
            for (rlcc_dtype x : {RLCC_F32, RLCC_BF16, RLCC_F16}) {
              check_split(plan_forward(rows, w, x, device), rows, outputs, columns, device);
              check_split(plan_grad_x(rows, w, x, device), rows, columns, outputs, device);
            }
          }
          check_split(plan_2to4(rows, outputs, columns, device), outputs, rows, columns, device);
        }
      }
    }
  }
}

void which_kernel() {
  CHECK(forward_on_tensor_cores(RLCC_BF16, RLCC_BF16) && forward_on_tensor_cores(RLCC_F16, RLCC_I8));
  CHECK(!forward_on_tensor_cores(RLCC_BF16, RLCC_F16) && !forward_on_tensor_cores(RLCC_F32, RLCC_BF16));
  CHECK(!forward_on_tensor_cores(RLCC_F16, RLCC_BF16) && !forward_on_tensor_cores(RLCC_BF16, RLCC_F32));
  CHECK(grad_x_on_tensor_cores(RLCC_BF16, RLCC_I8) && !grad_x_on_tensor_cores(RLCC_F16, RLCC_I8));
  CHECK(grad_values_on_tensor_cores(RLCC_F16) && !grad_values_on_tensor_cores(RLCC_F32));
}

void real_layers() {
  const auto square = weight(4096, 4096, RLCC_BF16), int8 = weight(4096, 4096, RLCC_I8);
  // A long prompt fills the device with tall tiles; a short one does not.
  CHECK(plan_forward(2048, square, RLCC_BF16, kH100).tile == TileShape::k256x128);
  CHECK(plan_forward(2048, square, RLCC_BF16, kH100).splits == 1);
  CHECK(plan_forward(8192, square, RLCC_BF16, kA100).tile == TileShape::k256x128);
  CHECK(plan_forward(512, square, RLCC_BF16, kH100).tile == TileShape::k64x64);
  CHECK(plan_forward(2048, int8, RLCC_BF16, kH100).tile == TileShape::k128x64);
  // 64 tiles of 64 x 64 for 132 multiprocessors: four blocks on each, by splits.
  const TilePlan few = plan_forward(32, square, RLCC_BF16, kH100);
  CHECK(few.tile == TileShape::k64x64 && few.splits == 8 && few.steps_per_split == 16);
  CHECK(partials_bytes(few, 32, 4096) == size_t{8} * 32 * 4096 * 4);
  CHECK(plan_grad_x(2048, square, RLCC_BF16, kH100).tile == TileShape::k256x128);
  CHECK(plan_grad_x(4, square, RLCC_BF16, kH100).tile == TileShape::k64x128);
  CHECK(plan_2to4(4096, 4096, 4096, kA100).tile == TileShape::k128x128);
  CHECK(index_bytes(4096, 4096) == size_t{32} * 4096 * 4 && index_bytes(3, 129) == 32);
}

}  // namespace

int main() {
  every_problem();
  which_kernel();
  real_layers();
  return restorelcc::test::report("tile_plan");
}
