// The choices of csrc/cuda/plan_cross_entropy.h on the heads of real models and on the devices built for.
#include "../cpp/check.h"
#include "cuda/plan_cross_entropy.h"

using namespace restorelcc::cuda;

namespace {

constexpr DeviceInfo kA100{108, 163 << 10}, kH100{132, 227 << 10}, kRtx4090{128, 99 << 10}, kTiny{1, 48 << 10};

void every_plan_is_possible() {
  for (const DeviceInfo& device : {kA100, kH100, kRtx4090, kTiny}) {
    for (int64_t rows : {0, 1, 16, 17, 128, 129, 2048, 8192, 65536}) {
      for (int64_t vocabulary : {0, 1, 127, 129, 32000, 49152, 128256, 262144}) {
        for (int64_t columns : {0, 1, 576, 4096, 8192}) {
          for (rlcc_dtype dtype : {RLCC_F32, RLCC_BF16, RLCC_F16}) {
            const LossPlan plan = plan_loss(dtype, rows, vocabulary, columns, device);
            CHECK(plan.tile_rows == (dtype == RLCC_F32 ? 64 : rows <= 16 ? 16 : 128));
            CHECK(plan.splits >= 1 && plan.splits <= kLossMostSplits && plan.splits <= 65535);
            CHECK(plan.splits == 1 || plan.splits <= divide_up(vocabulary, plan.tile_columns))
                << "a tile for each part";
            CHECK(plan.chunk_columns > 0 && plan.chunk_columns % plan.tile_columns == 0);
            CHECK(plan.chunk_columns <= kLossMostChunk && plan.chunk_columns / plan.tile_columns <= 65535);
            CHECK(plan.product_splits >= 1 && plan.product_splits <= kLossMostProductSplits);
            CHECK(plan.product_splits <= plan.chunk_columns / plan.tile_columns);
            // Never [M, V]: where logits are kept, they are a small part of all.
            CHECK(vocabulary < 128256 || plan.chunk_columns * 7 < vocabulary);
          }
        }
      }
    }
  }
}

// Waves of blocks times what a block does: how long a multiprocessor is at work, in tiles.
int64_t tiles_in_sequence(int64_t rows, int64_t vocabulary, const DeviceInfo& device) {
  const LossPlan plan = plan_loss(RLCC_BF16, rows, vocabulary, 4096, device);
  const int64_t blocks = divide_up(rows, plan.tile_rows) * plan.splits;
  return divide_up(blocks, loss_slots(plan.tile_rows, device)) *
         divide_up(divide_up(vocabulary, plan.tile_columns), plan.splits);
}

void devices_are_filled() {
  constexpr int64_t kVocabulary = 128256, kTiles = 1002;
  for (const DeviceInfo& device : {kA100, kH100, kRtx4090}) {
    for (int64_t rows : {1, 16, 128, 512, 2048, 8192}) {
      const int64_t tile_rows = loss_tile_rows(RLCC_BF16, rows);
      const int64_t work = divide_up(rows, tile_rows) * kTiles;
      const int64_t ideal = divide_up(work, loss_slots(static_cast<int>(tile_rows), device));
      CHECK(tiles_in_sequence(rows, kVocabulary, device) <= ideal + ideal / 10 + 1)
          << rows << " rows: " << tiles_in_sequence(rows, kVocabulary, device) << " tiles, " << ideal
          << " at best";
    }
  }
  // One token: a part for each of several blocks on every multiprocessor. Many: no more parts than there is use
  // for.
  CHECK(plan_loss(RLCC_BF16, 1, kVocabulary, 4096, kH100).splits > 2 * 132);
  CHECK(plan_loss(RLCC_BF16, 8192, kVocabulary, 4096, kH100).splits <= 64);
  CHECK(plan_loss(RLCC_BF16, 1, kVocabulary, 4096, kH100).product_splits > 8);
  CHECK(plan_loss(RLCC_BF16, 8192, kVocabulary, 4096, kH100).product_splits == 1);
  CHECK(plan_loss(RLCC_BF16, 8192, kVocabulary, 4096, kH100).chunk_columns == 4096);
}

}  // namespace

int main() {
  every_plan_is_possible();
  devices_are_filled();
  return restorelcc::test::report("plan_cross_entropy");
}
