// SPDX-License-Identifier: Apache-2.0
// Runs one fuzzer's entry on every file of its corpus, whole and cut short at each of its first
// lengths. Needs no fuzzing library, so every build does it.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** arguments) {
  int files = 0;
  for (int i = 1; i < count; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(arguments[i])) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
      const std::size_t cuts = bytes.size() < 300 ? bytes.size() : 300;
      for (std::size_t size = 0; size <= cuts; ++size) {
        const std::size_t length = size == cuts ? bytes.size() : size;
        // A copy of exactly this length: a read beyond it is a read beyond the allocation.
        const std::vector<std::uint8_t> part(bytes.begin(),
                                             bytes.begin() + static_cast<std::ptrdiff_t>(length));
        LLVMFuzzerTestOneInput(part.data(), part.size());
      }
      ++files;
    }
  }
  std::printf("%d files\n", files);
  return files > 0 ? 0 : 1;  // a corpus that is not there proves nothing
}
