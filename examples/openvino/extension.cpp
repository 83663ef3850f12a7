// What OpenVINO finds in the library: Core::add_extension("librestorelcc_openvino.so").
#include <memory>
#include <vector>

#include "openvino/core/extension.hpp"
#include "openvino/core/op_extension.hpp"
#include "sparse_linear_op.h"

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<restorelcc_openvino::SparseLinear>>()}));
