# cmake -DOBJECT=... -P check_expand_form.cmake
# The AVX-512 kernels expand from registers, over zeros: in its memory form vpexpand is slower than the dense product,
# and in its zeroing form it waits for the last writer of its destination (vector_avx512.h).
execute_process(COMMAND objdump -d --no-show-raw-insn ${OBJECT} OUTPUT_VARIABLE code COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "v(pexpandb|pexpandw|pexpandd|expandps)[^\n]*" expansions "${code}")
list(LENGTH expansions count)
if(count LESS 8)
  message(FATAL_ERROR "only ${count} expansions in ${OBJECT}")
endif()
foreach(expansion IN LISTS expansions)
  if(expansion MATCHES "\\(%r")
    message(FATAL_ERROR "memory form: ${expansion}")
  endif()
  if(expansion MATCHES "{z}")
    message(FATAL_ERROR "zeroing form: ${expansion}")
  endif()
endforeach()
message(STATUS "${count} expansions, all from registers and over zeros")
