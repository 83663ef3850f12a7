# cmake -DLIBRARY=... -DSTRIP=... -DMOST=... -DWORK=... -P check_size.cmake
file(COPY_FILE ${LIBRARY} ${WORK}/stripped.so)
execute_process(COMMAND ${STRIP} --strip-unneeded ${WORK}/stripped.so COMMAND_ERROR_IS_FATAL ANY)
file(SIZE ${WORK}/stripped.so bytes)
if(bytes GREATER MOST)
  message(FATAL_ERROR "the stripped library has ${bytes} bytes, more than ${MOST}")
endif()
message(STATUS "${bytes} bytes stripped, at most ${MOST}")
