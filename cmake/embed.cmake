# SPDX-License-Identifier: Apache-2.0
# Turns the kernel sources named in LIST into the C++ file OUT; names are relative to ROOT.
file(READ ${LIST} kernels)
string(STRIP "${kernels}" kernels)
list(SORT kernels)

set(arrays "")
set(table "")
set(count 0)
foreach(path IN LISTS kernels)
  file(RELATIVE_PATH name ${ROOT} ${path})
  file(READ ${path} bytes HEX)
  # Character literals: no limit on the length of a string, no escapes, any byte.
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${bytes}")
  string(APPEND arrays "const char text_${count}[] = {${bytes}0};\n")
  string(APPEND table "    {\"${name}\", text_${count}},\n")
  math(EXPR count "${count} + 1")
endforeach()

file(WRITE ${OUT}.new "// Generated from src/cuda/device and src/cuda/kernels.
#include \"cuda/embedded.hpp\"

namespace undivided::cuda {
namespace {
${arrays}}  // namespace

const EmbeddedFile embedded_files[] = {
${table}    {nullptr, nullptr},
};
const int embedded_file_count = ${count};
}  // namespace undivided::cuda
")
file(RENAME ${OUT}.new ${OUT})
