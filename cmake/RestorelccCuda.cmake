# The CUDA kernels: nvcc compiles each file of RLCC_CUDA_KERNELS for all architectures into one object, and the static
# CUDA runtime is linked into librestorelcc, so that the library loads on machines without a driver and needs no CUDA
# package. CMake's own CUDA language is not used: it is all or nothing when a project is configured, and does not know
# the layout of the PyPI wheels (nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime, nvidia-cuda-cccl).

set(RLCC_CUDA AUTO CACHE STRING "CUDA kernels: ON, OFF, or AUTO (where a working nvcc is found)")
set_property(CACHE RLCC_CUDA PROPERTY STRINGS AUTO ON OFF)
# A100; RTX 30, A10; RTX 40, L4, L40; H100, H200; B200. PTX of the last one serves what comes after (RTX 50).
set(RLCC_CUDA_ARCHITECTURES 80 86 89 90 100 CACHE STRING
    "Compute capabilities to compile for, ascending; PTX of the last one is added")
set(RLCC_NVCC "" CACHE FILEPATH "nvcc; empty: CUDACXX, CUDA_HOME, CUDA_PATH, PATH, then the PyPI wheels")

# Sets RLCC_NVCC to nvcc, or to nothing.
function(rlcc_find_nvcc)
  if(RLCC_NVCC)
    return()
  endif()
  if(DEFINED ENV{CUDACXX} AND EXISTS "$ENV{CUDACXX}")
    set(found "$ENV{CUDACXX}")
  else()
    find_program(found nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin NO_CACHE)
  endif()
  if(NOT found)
    find_program(python NAMES python3 python NO_CACHE)
    if(Python_EXECUTABLE)
      set(python "${Python_EXECUTABLE}")
    endif()
    if(python)
      execute_process(COMMAND "${python}" -c
        "import sysconfig; print(sysconfig.get_path('purelib'))" OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE)
      find_program(found nvcc HINTS "${packages}/nvidia/cu13/bin" "${packages}/nvidia/cuda_nvcc/bin" NO_DEFAULT_PATH NO_CACHE)
    endif()
  endif()
  if(found)
    set(RLCC_NVCC "${found}" CACHE FILEPATH "nvcc" FORCE)
  endif()
endfunction()

# Sets `variable` to why CUDA kernels cannot be built here; empty: they can, and RLCC_CUDART is the static runtime.
function(rlcc_check_cuda variable)
  set(${variable} "" PARENT_SCOPE)
  rlcc_find_nvcc()
  if(NOT RLCC_NVCC)
    set(${variable} "nvcc was not found" PARENT_SCOPE)
    return()
  endif()
  # Where nvcc takes its headers and libraries from, in its own words: it may be a link or a wrapper.
  set(probe "${PROJECT_BINARY_DIR}/cuda/probe.cu")
  file(WRITE "${probe}" "__global__ void probe() {}\n")
  execute_process(COMMAND "${RLCC_NVCC}" --dryrun -c "${probe}" -o "${probe}.o" ERROR_VARIABLE dryrun OUTPUT_QUIET)
  if(NOT dryrun MATCHES "TOP=([^\r\n]+)")
    set(${variable} "${RLCC_NVCC} does not answer --dryrun" PARENT_SCOPE)
    return()
  endif()
  set(top "${CMAKE_MATCH_1}")
  find_library(cudart libcudart_static.a PATHS "${top}/lib64" "${top}/lib" "${top}/targets/x86_64-linux/lib"
    "${top}/targets/sbsa-linux/lib" NO_DEFAULT_PATH NO_CACHE)
  if(NOT cudart)
    set(${variable} "libcudart_static.a was not found under ${top}" PARENT_SCOPE)
    return()
  endif()
  set(RLCC_CUDART "${cudart}" PARENT_SCOPE)
  list(GET RLCC_CUDA_ARCHITECTURES -1 newest)
  execute_process(
    COMMAND "${RLCC_NVCC}" -ccbin "${CMAKE_CXX_COMPILER}" -std=c++17 -arch=sm_${newest} -c "${probe}" -o "${probe}.o"
    RESULT_VARIABLE failed ERROR_VARIABLE message OUTPUT_QUIET)
  if(failed)
    string(REGEX REPLACE "\n.*" "" message "${message}")
    set(${variable} "${RLCC_NVCC} does not compile for sm_${newest} with ${CMAKE_CXX_COMPILER} (${message})" PARENT_SCOPE)
  endif()
endfunction()

# Replaces, in the list `variable` (relative to the project), each .cu file by the object that nvcc makes of it for all
# architectures; sets RLCC_CUDA_NAMES to those.
function(rlcc_nvcc_objects variable)
  list(GET RLCC_CUDA_ARCHITECTURES -1 newest)
  set(given ${${variable}})  # before names of this function could hide it
  set(objects)
  set(names)
  set(flags -std=c++17 -O3 --expt-relaxed-constexpr -ccbin "${CMAKE_CXX_COMPILER}"
    -I${PROJECT_SOURCE_DIR}/csrc -I${PROJECT_SOURCE_DIR}/csrc/include
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall -Xptxas -warn-spills,-warn-lmem-usage)
  if(RLCC_WERROR)
    list(APPEND flags -Werror all-warnings -Xcompiler -Werror)
  endif()
  # One PTX serves all of a family (sm_80, 86 and 89), since no kernel asks which one it is compiled for: a quarter of the
  # compile time less than a PTX each.
  set(families)
  set(ascending ${RLCC_CUDA_ARCHITECTURES})  # the lowest of a family is what its PTX is for
  list(SORT ascending COMPARE NATURAL)
  foreach(architecture IN LISTS ascending)
    set(family ${architecture})
    if(architecture MATCHES "^([0-9]+)[0-9]$")
      set(family ${CMAKE_MATCH_1})
    endif()
    if(NOT family IN_LIST families)
      list(APPEND families ${family})
      set(ptx_${family} ${architecture})
      set(machines_${family})
    endif()
    string(APPEND machines_${family} ",sm_${architecture}")
  endforeach()
  foreach(architecture IN LISTS RLCC_CUDA_ARCHITECTURES)
    list(APPEND names sm_${architecture})
  endforeach()
  foreach(family IN LISTS families)
    string(SUBSTRING "${machines_${family}}" 1 -1 machines)
    list(APPEND flags "-gencode=arch=compute_${ptx_${family}},code=[${machines}]")
  endforeach()
  list(APPEND flags -gencode=arch=compute_${newest},code=compute_${newest})
  list(APPEND names compute_${newest})
  list(JOIN names " " names)
  foreach(source IN LISTS given)
    if(NOT source MATCHES "\\.cu$")
      list(APPEND objects ${source})
      continue()
    endif()
    get_filename_component(name ${source} NAME_WE)
    set(object ${PROJECT_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND "${RLCC_NVCC}" ${flags} -MD -MF ${object}.d -c ${PROJECT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${PROJECT_SOURCE_DIR}/${source} DEPFILE ${object}.d
      COMMENT "nvcc ${name} for ${names}" VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set(${variable} ${objects} PARENT_SCOPE)
  set(RLCC_CUDA_NAMES "${names}" PARENT_SCOPE)
endfunction()

# Replaces, in the source list `variable`, the entry points that refuse by the ones that launch; adds the objects.
function(rlcc_use_cuda variable)
  set(sources ${${variable}})
  list(REMOVE_ITEM sources ${RLCC_CUDA_UNAVAILABLE})
  list(APPEND sources ${RLCC_CUDA_HOST_SOURCES} ${RLCC_CUDA_KERNELS} ${RLCC_CUDA_DEVICE_INFO})
  rlcc_nvcc_objects(sources)
  set_source_files_properties(csrc/cuda/api.cpp PROPERTIES
    COMPILE_DEFINITIONS "RLCC_CUDA_ARCHITECTURES=\"${RLCC_CUDA_NAMES}\"")
  set(${variable} ${sources} PARENT_SCOPE)
endfunction()

set(RLCC_CUDA_ENABLED OFF)
if(NOT RLCC_CUDA STREQUAL "OFF")
  rlcc_check_cuda(rlcc_no_cuda)
  if(NOT rlcc_no_cuda)
    set(RLCC_CUDA_ENABLED ON)
    message(STATUS "CUDA kernels: ${RLCC_NVCC}, compute capabilities ${RLCC_CUDA_ARCHITECTURES}")
  elseif(RLCC_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA kernels: none, ${rlcc_no_cuda}")
  else()
    message(FATAL_ERROR "RLCC_CUDA is ${RLCC_CUDA}, but ${rlcc_no_cuda}. Set RLCC_NVCC or CUDACXX, narrow "
                        "RLCC_CUDA_ARCHITECTURES, or configure with -DRLCC_CUDA=OFF.")
  endif()
endif()
