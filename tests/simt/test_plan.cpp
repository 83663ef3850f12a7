// The choices of csrc/cuda/plan.h on the shapes of real layers and on the devices built for.
#include "../cpp/check.h"
#include "cuda/grad_comp.h"
#include "cuda/head_moments.h"
#include "cuda/plan.h"

using namespace restorelcc::cuda;

namespace {

constexpr DeviceInfo kA100{108, 163 << 10}, kH100{132, 227 << 10}, kRtx4090{128, 99 << 10}, kTiny{1, 48 << 10};

void decode() {
  for (const DeviceInfo& device : {kA100, kH100, kRtx4090, kTiny}) {
    for (int64_t outputs : {1, 3, 4, 64, 1024, 4096, 14336, 128256}) {
      for (int64_t columns : {0, 1, 127, 576, 4096, 11008, 14336, 53248}) {
        for (int bytes : {1, 2, 4}) {
          const DecodePlan plan = plan_decode(outputs, columns, bytes, device);
          const int64_t parts = int64_t{plan.warps_along_k} * plan.splits;
          CHECK(parts * plan.part_columns >= columns) << "every column is somebody's";
          CHECK(plan.part_columns % kDecodePartMultiple == 0 && plan.part_columns > 0);
          CHECK(plan.warps() >= 1 && plan.warps() <= 8 && plan.splits >= 1 && plan.splits <= 65535);
          CHECK(static_cast<size_t>(plan.warps() * decode_warp_bytes(bytes)) <= device.shared_bytes_per_block);
          CHECK(parts == 1 || columns / parts > kDecodeStage / 2 - 1) << "a warp has something to do";
          CHECK((decode_workspace_bytes(plan, 16, outputs) == 0) == (plan.splits == 1));
        }
      }
    }
  }
  // o_proj of a 7B model: no second kernel; few outputs: one.
  CHECK(plan_decode(4096, 4096, 2, kH100).splits == 1);
  CHECK(plan_decode(4096, 14336, 2, kH100).splits == 1);
  CHECK(plan_decode(64, 14336, 2, kH100).splits > 1);
  CHECK(decode_workspace_bytes(plan_decode(64, 14336, 2, kH100), 3, 64) ==
        static_cast<size_t>(plan_decode(64, 14336, 2, kH100).splits) * 3 * 64 * 4);
  // A language model's head has warps enough without parts.
  CHECK(plan_decode(128256, 4096, 2, kH100).warps_along_k == 1);
}

void head_moments() {
  for (int64_t tokens : {1, 47, 48, 49, 4096, 1'000'000}) {
    for (int64_t heads : {1, 9, 32, 128, 5000}) {
      for (int64_t dim : {1, 64, 65, 128, 512}) {
        const HeadMomentsPlan plan = plan_head_moments(tokens, heads, dim);
        const int64_t slabs = (tokens + kGramSlab - 1) / kGramSlab, rows = (dim + kGramTile - 1) / kGramTile;
        CHECK(plan.tile_rows == rows && plan.tiles == rows * (rows + 1) / 2);
        CHECK(plan.chunks >= 1 && plan.chunks <= slabs) << "a chunk has something to do";
        CHECK(plan.chunks == 1 || plan.chunks * heads * plan.tiles <= kGramBlocksWanted);
        const size_t bytes = head_moments_workspace_bytes(plan, heads);
        CHECK((bytes == 0) == (plan.chunks == 1));
        CHECK(bytes <= 34'078'720) << "what cuda.h says";
      }
    }
  }
  CHECK(plan_head_moments(2048, 32, 64).chunks == 32);
  CHECK(plan_head_moments(2048, 32, 128).chunks == 10);
  CHECK(plan_head_moments(2048, 128, 256).chunks == 1);
  CHECK(plan_head_moments(0, 0, 0).chunks == 1);
}

void grad_comp() {
  for (const DeviceInfo& device : {kA100, kH100, kRtx4090, kTiny}) {
    for (int64_t rows :
         {int64_t{0}, int64_t{1}, int64_t{128}, int64_t{129}, int64_t{2048}, int64_t{65537}, kMostSize}) {
      for (int64_t columns : {int64_t{1}, int64_t{256}, int64_t{257}, int64_t{4096}, int64_t{1'000'000}}) {
        for (int64_t groups : {0, 1, 8, 9, 4096}) {
          for (const bool all : {false, true}) {
            const GradCompSums sums{groups, all};
            if (sums.count() == 0) continue;
            const GradCompPlan plan = plan_grad_comp(rows, columns, sums, device);
            CHECK(plan.blocks == (columns + 255) / 256 * std::max<int64_t>((groups + 7) / 8, 1));
            CHECK(plan.splits >= 1 && plan.splits <= 64 && plan.rows_per_split % kGradCompRows == 0);
            CHECK(int64_t{plan.splits} * plan.rows_per_split >= rows) << "every row is somebody's";
            CHECK(plan.splits == 1 || (plan.splits - 1) * int64_t{plan.rows_per_split} < rows)
                << "none is idle";
            const size_t bytes = grad_comp_workspace_bytes(plan, columns, sums);
            CHECK((bytes == 0) == (plan.splits == 1));
            CHECK(bytes <= static_cast<size_t>(rows * columns) * 2 / 16) << "what cuda.h says";
          }
        }
      }
    }
  }
  CHECK(plan_grad_comp(2048, 4096, {0, true}, kH100).splits == 16);
  CHECK(plan_grad_comp(2048, 4096, {0, true}, kTiny).splits == 1);
  CHECK(plan_grad_comp(2048, 4096, {64, true}, kH100).splits == 1);
}

}  // namespace

int main() {
  grad_comp();
  decode();
  head_moments();
  return restorelcc::test::report("plan");
}
