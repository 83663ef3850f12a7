# Installs the build `BUILD` below `WORK`, moves the installed tree (it may be moved), and builds and runs the consumers.
cmake_policy(VERSION 3.22)
set(EXPECTED "llama bf16 layers 2 hidden 40 heads 4/2 weights 14\n")

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(failed)
    string(REPLACE ";" " " command "${ARGN}")
    message(FATAL_ERROR "${command}\n${output}\n${errors}")
  endif()
  set(OUTPUT "${output}" PARENT_SCOPE)
endfunction()

function(expect_config how)
  if(NOT OUTPUT STREQUAL EXPECTED)
    message(FATAL_ERROR "${how} prints '${OUTPUT}', not '${EXPECTED}'")
  endif()
  message(STATUS "${how}: ${OUTPUT}")
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/first --strip)
file(RENAME ${WORK}/first ${WORK}/prefix)
set(PREFIX ${WORK}/prefix)
set(ENV{LD_LIBRARY_PATH} ${PREFIX}/${LIBDIR})
file(COPY ${SOURCE}/consumer DESTINATION ${WORK})  # outside of the tree: nothing beside it helps

foreach(installed include/restorelcc/restorelcc.h include/restorelcc/params.h include/restorelcc/cuda.h
        include/restorelcc/model.h ${LIBDIR}/librestorelcc.a ${LIBDIR}/pkgconfig/restorelcc.pc
        ${LIBDIR}/cmake/restorelcc/restorelccConfig.cmake)
  if(NOT EXISTS ${PREFIX}/${installed})
    message(FATAL_ERROR "${installed} was not installed")
  endif()
endforeach()

foreach(language C CXX)
  foreach(library restorelcc restorelcc_static)
    set(build ${WORK}/${language}_${library})
    run(${CMAKE_COMMAND} -S ${WORK}/consumer -B ${build} -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}
        -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_CXX_COMPILER=${CXX_COMPILER} -DCMAKE_PREFIX_PATH=${PREFIX}
        -DLANGUAGE=${language} -DLIBRARY=${library} -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
    run(${CMAKE_COMMAND} --build ${build})
    run(${build}/consumer ${MODEL})
    expect_config("${language}, CMake, ${library}")
  endforeach()
endforeach()

find_program(pkg_config NAMES pkg-config pkgconf)
if(NOT pkg_config)
  message(STATUS "pkg-config: skipped, this machine has none")
  return()
endif()
set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
foreach(how shared static)
  set(flags --cflags --libs)
  if(how STREQUAL "static")
    list(PREPEND flags --static)
  endif()
  run(${pkg_config} ${flags} restorelcc)
  string(STRIP "${OUTPUT}" options)
  separate_arguments(options UNIX_COMMAND "${options}")
  if(how STREQUAL "static")  # the linker takes the shared library where both are there
    list(TRANSFORM options REPLACE "^-lrestorelcc$" "-l:librestorelcc.a")
  endif()
  run(${C_COMPILER} -std=c99 -pedantic -Wall -Wextra -Werror ${WORK}/consumer/print_config.c -o ${WORK}/c_${how} ${options})
  run(${CXX_COMPILER} -std=c++17 -pedantic -Wall -Wextra -Werror ${WORK}/consumer/print_config.cpp -o ${WORK}/cxx_${how}
      ${options})
  foreach(program c_${how} cxx_${how})
    run(${WORK}/${program} ${MODEL})
    expect_config("pkg-config, ${program}")
  endforeach()
endforeach()
