# SPDX-License-Identifier: Apache-2.0
# One GoogleTest executable per area: tests/<area>_*_test.cpp and tests/<area>_test.cpp make
# test_<area>. Helpers shared by several areas live in tests/support/*.cpp.
find_package(GTest QUIET)
find_package(rapidcheck QUIET)
if(NOT GTest_FOUND)
  message(STATUS "GoogleTest not found: tests are not built")
  return()
endif()

file(GLOB support_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/support/*.cpp)
file(GLOB test_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*_test.cpp)

add_library(test_settings INTERFACE)
target_include_directories(test_settings INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}
                                                   ${PROJECT_SOURCE_DIR}/tests)
target_compile_definitions(test_settings INTERFACE
  UNDIVIDED_SOURCE_DIR="${PROJECT_SOURCE_DIR}" UNDIVIDED_BINARY_DIR="${PROJECT_BINARY_DIR}")
# Tests mix signed and unsigned freely, and put EXPECT_ after a bare if; the library may not.
target_compile_options(test_settings INTERFACE -Wno-conversion -Wno-sign-conversion
                                               -Wno-sign-compare -Wno-dangling-else)
target_link_libraries(test_settings INTERFACE undivided Threads::Threads GTest::gtest GTest::gmock
                      fmt::fmt nlohmann_json::nlohmann_json ${CMAKE_DL_LIBS})
if(UNDIVIDED_TBB)
  target_link_libraries(test_settings INTERFACE TBB::tbb)
endif()
find_library(RAPIDCHECK_LIBRARY rapidcheck)
if(TARGET rapidcheck)
  target_link_libraries(test_settings INTERFACE rapidcheck)
elseif(RAPIDCHECK_LIBRARY)
  target_link_libraries(test_settings INTERFACE ${RAPIDCHECK_LIBRARY})
endif()

set(support_library)
if(support_sources)
  add_library(test_support STATIC ${support_sources})
  undivided_settings(test_support)
  target_link_libraries(test_support PUBLIC test_settings)
  set(support_library test_support)
endif()

include(cmake/lab.cmake)

set(areas)
foreach(source IN LISTS test_sources)
  get_filename_component(name ${source} NAME)
  string(REGEX MATCH "^[a-z0-9]+" area ${name})
  list(APPEND areas ${area})
  list(APPEND sources_${area} ${source})
endforeach()
list(REMOVE_DUPLICATES areas)

if(NOT TARGET undivided_nn)
  list(REMOVE_ITEM areas nn)
endif()

foreach(area IN LISTS areas)
  add_executable(test_${area} ${sources_${area}})
  undivided_settings(test_${area})
  if(NOT area STREQUAL "gpu")  # its files repeat names, each with a meaning of its own
    undivided_unity(test_${area} 4)
  endif()
  # Half of the time to compile, and what takes time in a test is the library.
  target_compile_options(test_${area} PRIVATE -O0)
  target_link_libraries(test_${area} PRIVATE ${support_library} test_settings GTest::gtest_main)
  if(area STREQUAL "variants")
    target_link_libraries(test_${area} PRIVATE undivided_lab)
  endif()
  # The lowest layers are tested without anything above them.
  if(TARGET undivided_check AND NOT area MATCHES "^(core|expr|mask|problem)$")
    target_link_libraries(test_${area} PRIVATE undivided_check)
  endif()
  if(area STREQUAL "nn")
    target_link_libraries(test_${area} PRIVATE undivided_nn)
  endif()
  add_test(NAME test_${area} COMMAND test_${area} --gtest_brief=1
           --gtest_output=xml:${PROJECT_BINARY_DIR}/results/test_${area}.xml)
  if(area MATCHES "^(attention|cpu|cuda)$")  # the longest first: none runs alone at the end
    set_tests_properties(test_${area} PROPERTIES COST 100)
  endif()
endforeach()

# The C face, from plain C.
file(GLOB c_test_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*_test.c)
foreach(source IN LISTS c_test_sources)
  get_filename_component(name ${source} NAME_WE)
  string(REGEX REPLACE "_test$" "" name ${name})
  add_executable(test_${name} ${source})
  set_target_properties(test_${name} PROPERTIES C_STANDARD 11)
  undivided_settings(test_${name})
  target_link_libraries(test_${name} PRIVATE undivided m)
  add_test(NAME test_${name} COMMAND test_${name})
endforeach()

# Fuzzers need clang's libFuzzer; every build replays what they found before.
option(UNDIVIDED_FUZZ "Build the parser fuzzers (clang only)" OFF)
file(GLOB fuzz_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/fuzz/*_fuzz.cpp)
foreach(source IN LISTS fuzz_sources)
  get_filename_component(name ${source} NAME_WE)
  string(REPLACE "_fuzz" "" parser ${name})
  add_executable(replay_${parser} ${source} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.cpp)
  undivided_settings(replay_${parser})
  target_link_libraries(replay_${parser} PRIVATE test_settings)
  add_test(NAME replay_${parser}
           COMMAND replay_${parser} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${parser})
  if(UNDIVIDED_FUZZ)
    add_executable(${name} ${source})
    undivided_settings(${name})
    target_link_libraries(${name} PRIVATE test_settings)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  endif()
endforeach()

# The program whose instructions tests/python/test_gates.py counts.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64" AND CMAKE_SYSTEM_NAME STREQUAL Linux
   AND NOT UNDIVIDED_SANITIZE)
  add_executable(gate_region ${PROJECT_SOURCE_DIR}/tests/gates/region.cpp)
  undivided_settings(gate_region)
  target_link_libraries(gate_region PRIVATE test_settings)
endif()
