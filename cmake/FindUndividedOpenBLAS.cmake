# SPDX-License-Identifier: Apache-2.0
# Finds OpenBLAS, the serial one where there are several, as the target undivided_openblas. Installed
# beside undividedConfig.cmake, so that a package carries no path of the machine that built it.
find_path(UNDIVIDED_CBLAS_INCLUDE cblas.h
          PATH_SUFFIXES openblas-serial openblas ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-serial)
find_library(UNDIVIDED_OPENBLAS NAMES openblas PATH_SUFFIXES openblas-serial)
mark_as_advanced(UNDIVIDED_CBLAS_INCLUDE UNDIVIDED_OPENBLAS)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(UndividedOpenBLAS
  REQUIRED_VARS UNDIVIDED_OPENBLAS UNDIVIDED_CBLAS_INCLUDE
  REASON_FAILURE_MESSAGE "Debian: libopenblas-serial-dev")
if(UndividedOpenBLAS_FOUND AND NOT TARGET undivided_openblas)
  add_library(undivided_openblas UNKNOWN IMPORTED GLOBAL)
  set_target_properties(undivided_openblas PROPERTIES
    IMPORTED_LOCATION "${UNDIVIDED_OPENBLAS}"
    INTERFACE_INCLUDE_DIRECTORIES "${UNDIVIDED_CBLAS_INCLUDE}")
endif()
