#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/cpu_features.h"

namespace restorelcc {
namespace {

constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16"};
constexpr int kNotChosen = -1;  // then RLCC_ISA decides

std::atomic<int> g_chosen{kNotChosen};
std::atomic<bool> g_asked_for{false};  // g_chosen, by name

Isa best_isa() {
  for (int i = kIsaCount - 1; i > 0; --i) {
    if (isa_available(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::kScalar;
}

std::string available_names() {
  std::string names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (!isa_available(static_cast<Isa>(i))) continue;
    names += names.empty() ? "" : ", ";
    names += kNames[i];
  }
  return names;
}

// `source` says who asked: "RLCC_ISA" or "isa".
Status parse_isa(const char* name, const char* source, Isa* isa) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    *isa = static_cast<Isa>(i);
    if (isa_available(*isa)) return {};
    const char* lacking = isa_compiled(*isa) ? "this CPU" : "this build";
    return failure(RLCC_UNSUPPORTED, source, " is \"", name, "\", which ", lacking,
                   " lacks; choose one of: ", available_names());
  }
  return failure(RLCC_UNSUPPORTED, source, " is \"", name,
                 "\", which is no instruction set; choose one of: ", available_names());
}

struct EnvironmentWish {
  Isa isa = best_isa();
  Status status;
  bool asked_for = false;

  EnvironmentWish() {
    const char* name = std::getenv("RLCC_ISA");
    asked_for = name != nullptr && *name != '\0';
    if (asked_for) status = parse_isa(name, "RLCC_ISA", &isa);
  }
};

const EnvironmentWish& environment_wish() {
  static const EnvironmentWish wish;  // read once, at the first op
  return wish;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_compiled(Isa isa) {
#if RLCC_X86_KERNELS
  (void)isa;
  return true;
#else
  return isa == Isa::kScalar;
#endif
}

bool isa_available(Isa isa) {
  if (!isa_compiled(isa)) return false;
  switch (isa) {
    case Isa::kScalar: return true;
    case Isa::kAvx2: return cpu_features().avx2;
    case Isa::kAvx512F: return cpu_features().avx512f;
    case Isa::kAvx512Vbmi2: return cpu_features().avx512vbmi2;
    case Isa::kAvx512Bf16: return cpu_features().avx512bf16;
  }
  return false;
}

Status current_isa(Isa* isa) {
  const int chosen = g_chosen.load(std::memory_order_relaxed);
  if (chosen != kNotChosen) {
    *isa = static_cast<Isa>(chosen);
    return {};
  }
  *isa = environment_wish().isa;
  return environment_wish().status;
}

Status force_isa(const char* name) {
  Isa isa = best_isa();
  if (name != nullptr && *name != '\0') RLCC_RETURN_IF_FAILED(parse_isa(name, "isa", &isa));
  g_asked_for.store(name != nullptr && *name != '\0', std::memory_order_relaxed);
  g_chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
  return {};
}

Isa isa_for_bf16_pairs(Isa isa) {
  const bool chosen = g_chosen.load(std::memory_order_relaxed) != kNotChosen;
  const bool asked_for = chosen ? g_asked_for.load(std::memory_order_relaxed) : environment_wish().asked_for;
  const bool slow = isa == Isa::kAvx512Bf16 && cpu_features().slow_bf16_dot;
  return slow && !asked_for ? Isa::kAvx512Vbmi2 : isa;
}

}  // namespace restorelcc
