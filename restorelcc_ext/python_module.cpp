// restorelcc._C: what is no tensor. Everything that takes a tensor is an op (library.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "restorelcc/restorelcc.h"
#include "status_exception.h"

namespace py = pybind11;
using restorelcc_ext::throw_unless_ok;

namespace {

py::object build_info() { return py::module_::import("json").attr("loads")(rlcc_build_info()); }

py::list kernels() {
  const rlcc_kernel_info* rows = nullptr;
  int64_t count = 0;
  throw_unless_ok(rlcc_kernels(&rows, &count));
  py::list result;
  for (int64_t i = 0; i < count; ++i) {
    py::dict row;
    row["op"] = rows[i].op;
    row["name"] = rows[i].name;
    row["isa"] = rows[i].isa;
    row["available"] = rows[i].available != 0;
    result.append(row);
  }
  return result;
}

void force_isa(const std::optional<std::string>& name) {
  throw_unless_ok(rlcc_force_isa(name ? name->c_str() : nullptr));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "restorelcc core: build information, kernel registry, instruction set, thread pool.";
  module.def("build_info", &build_info, "What rlcc_build_info() reports, as a dict.");
  module.def("kernels", &kernels, "The kernel registry: dicts of op, name, isa, available.");
  module.def("force_isa", &force_isa, py::arg("name").none(true),
             "Use 'scalar', 'avx2' or 'avx512' and no better; None: the best this CPU has.");
  module.def("isa", [] { return std::string(rlcc_isa()); }, "The instruction set in use.");
  module.def(
      "set_num_threads", [](int32_t threads) { throw_unless_ok(rlcc_set_num_threads(threads)); },
      py::arg("threads"), "Threads of the library's own pool; ops called from torch use torch's.");
  module.def("get_num_threads", [] { return rlcc_get_num_threads(); }, "Threads of the library's own pool.");
}
