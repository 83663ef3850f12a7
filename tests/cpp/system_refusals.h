// pthread_create and mmap of this test program, which can be told to refuse. The shared library uses them too.
#pragma once

namespace restorelcc::test {

// The system starts this many more threads; negative: as many as it likes.
void allow_threads(int more);
// How many have been refused since.
int refused_threads();

// The system maps no file into memory: ENOMEM.
void refuse_mappings(bool refuse);

}  // namespace restorelcc::test
