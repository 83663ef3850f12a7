// operator new of this test program, which can be told to fail. The shared library uses it too.
#pragma once

namespace restorelcc::test {

// Until disarm(), the allocation number `first_failure` (from 0) of all threads throws std::bad_alloc; with
// `all_after` every later one does too.
void arm(long first_failure, bool all_after);
// Whether one failed.
bool disarm();
// Allocated and not freed.
long live_allocations();

}  // namespace restorelcc::test
