# SPDX-License-Identifier: Apache-2.0
# undivided_lab: algorithms of papers that count what they do. Not installed.
file(GLOB lab_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/lab/*.cpp)
add_library(undivided_lab STATIC ${lab_sources})
undivided_settings(undivided_lab)
undivided_unity(undivided_lab 8)
target_include_directories(undivided_lab PUBLIC ${PROJECT_SOURCE_DIR})
