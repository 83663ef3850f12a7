// How often each kernel of the registry ran in this process (counted_kernels.cpp).
#pragma once

#include <map>
#include <string>

namespace restorelcc::test {

std::map<std::string, long> kernel_calls();

}  // namespace restorelcc::test
