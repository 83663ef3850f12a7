// What this build is, as JSON.
#pragma once

#include <string>

namespace restorelcc {

std::string build_info_json();

}  // namespace restorelcc
