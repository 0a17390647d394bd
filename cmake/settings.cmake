# SPDX-License-Identifier: Apache-2.0
# Compiler settings shared by all targets, per-file ISA flags, and the two generated sources.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

# Headers, and fmt where it is header-only, are most of what a file costs to compile, so files of one
# folder are compiled together. Names in their anonymous namespaces differ within a folder for that.
# The dev preset compiles each alone: there a file that forgets an include is found.
option(UNDIVIDED_UNITY "Compile files of a folder together: a clean build takes half the time" ON)
# At most `most` files a unit: what is compiled again when one of them changes.
function(undivided_unity target most)
  if(NOT UNDIVIDED_UNITY)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    cmake_path(GET source PARENT_PATH folder)
    cmake_path(GET folder FILENAME folder)
    if(NOT DEFINED count_${folder})
      set(count_${folder} 0)
    endif()
    math(EXPR part "${count_${folder}} / ${most}")
    math(EXPR count_${folder} "${count_${folder}} + 1")
    set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${folder}_${part})
  endforeach()
endfunction()

# Language level, warnings and sanitizers of one target.
function(undivided_settings target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  if(UNDIVIDED_DEVELOPER_MODE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion>)
    if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      # It warns about padding of 64-byte vectors passed by value, which never cross a library border;
      # takes files that are compiled together for headers; and gcc 12 mistakes std::string's copies.
      target_compile_options(${target} PRIVATE
        $<$<COMPILE_LANGUAGE:CXX>:-Wno-psabi;-Wno-subobject-linkage;-Wno-restrict>)
    endif()
    if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
      find_program(LLD NAMES ld.lld-19 ld.lld)
      if(LLD)
        target_link_options(${target} PRIVATE -fuse-ld=lld)
      endif()
    endif()
  endif()
  if(UNDIVIDED_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(UNDIVIDED_SANITIZE)
    set(flags -fsanitize=${UNDIVIDED_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(${target} PUBLIC ${flags})
    target_link_options(${target} PUBLIC ${flags})
  endif()
endfunction()

# The files of src/cpu are written once and compiled per instruction set.
function(undivided_isa_flags)
  set(common)
  set(tiles)
  if(NOT UNDIVIDED_SANITIZE)
    list(APPEND common -O3)
  elseif(UNDIVIDED_SANITIZE MATCHES undefined)
    # Half of the time to compile: the address sanitizer sees a null pointer too, and tiles load
    # vectors that need no alignment.
    set(tiles -fno-sanitize=null,alignment,object-size)
  endif()
  set(flags_scalar)
  set(flags_avx2 -mavx2 -mfma -mf16c)
  set(flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
                   -mprefer-vector-width=512)
  set(flags_avx512_bf16 ${flags_avx512} -mavx512bf16 -mavx512vnni)
  set(flags_amx ${flags_avx512_bf16} -mamx-tile -mamx-bf16 -mamx-int8)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "/src/cpu/isa/([a-z0-9_]+)\\.cpp$")
      set(isa ${CMAKE_MATCH_1})
      set(flags ${common} ${tiles})
      if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
        list(APPEND flags ${flags_${isa}})
      endif()
      if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)  # its own headers leave vectors undefined on purpose
        list(APPEND flags -Wno-uninitialized -Wno-maybe-uninitialized)
      endif()
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
    elseif(source MATCHES "/src/cpu/forward.cpp$")  # its names are those of backward.cpp
      set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON COMPILE_OPTIONS "${common}")
    elseif(source MATCHES "/src/cpu/" AND NOT UNDIVIDED_SANITIZE AND NOT CMAKE_BUILD_TYPE STREQUAL Release)
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -O3)  # which compiles it alone
    elseif(UNDIVIDED_SANITIZE AND source MATCHES "/src/ref/reference.cpp$")
      # Every test asks the oracle, and it is one thread's plain loops.
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -O2)
    elseif(source MATCHES "/src/core/generator.cpp$")
      # Random tensors are the same on every machine.
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
    endif()
  endforeach()
endfunction()

# Kernel sources become one generated file: no CUDA toolkit is needed to build.
function(undivided_embed_kernels target)
  set(folder ${PROJECT_SOURCE_DIR}/src/cuda)
  # params.hpp, list_params.hpp, difference_params.hpp and page_map.hpp are read by host and kernels alike.
  file(GLOB kernels CONFIGURE_DEPENDS ${folder}/device/*.cuh ${folder}/kernels/*.cuh ${folder}/params.hpp ${folder}/list_params.hpp ${folder}/difference_params.hpp ${folder}/page_map.hpp)
  set(script ${PROJECT_SOURCE_DIR}/cmake/embed.cmake)
  set(out ${PROJECT_BINARY_DIR}/generated/embedded.cpp)
  set(list ${PROJECT_BINARY_DIR}/generated/embedded.txt)
  file(CONFIGURE OUTPUT ${list} CONTENT "${kernels}\n")
  add_custom_command(
    OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DROOT=${folder} -DLIST=${list} -DOUT=${out} -P ${script}
    DEPENDS ${kernels} ${script} ${list}
    COMMENT "Embedding kernel sources"
    VERBATIM)
  target_sources(${target} PRIVATE ${out})
endfunction()

# The commit is looked up at every build; the file changes, and recompiles, only when it does.
function(undivided_build_info target)
  set(out ${PROJECT_BINARY_DIR}/generated/build_info.cpp)
  add_custom_target(${target}_build_info
    COMMAND ${CMAKE_COMMAND} -DOUT=${out} -DROOT=${PROJECT_SOURCE_DIR}
            -DCOMPILER=${CMAKE_CXX_COMPILER_ID}-${CMAKE_CXX_COMPILER_VERSION}
            -DBUILD_TYPE=${CMAKE_BUILD_TYPE} -P ${PROJECT_SOURCE_DIR}/cmake/build_info.cmake
    BYPRODUCTS ${out}
    VERBATIM)
  add_dependencies(${target} ${target}_build_info)
  target_sources(${target} PRIVATE ${out})
endfunction()
