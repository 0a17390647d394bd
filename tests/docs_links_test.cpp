// SPDX-License-Identifier: Apache-2.0
// Claims: every link from the docs into the code names what its line holds, and a link that does
// not is found and can be mended.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace {

namespace fs = std::filesystem;

bool passes(const std::string& arguments) {
  const std::string command = std::string("python3 " UNDIVIDED_SOURCE_DIR "/tools/check_links ") +
                              arguments + " > /dev/null";
  return std::system(command.c_str()) == 0;
}

class Links : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(root / "docs");
    fs::create_directories(root / "src");
    std::ofstream(root / "src" / "a.cpp") << "// first\nint answer();\nint question();\n";
  }
  void TearDown() override { fs::remove_all(root); }
  void page(const std::string& text) const { std::ofstream(root / "docs" / "page.md") << text; }
  std::string page() const {
    std::ifstream file(root / "docs" / "page.md");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  bool good(const std::string& more = "") const {
    return passes("--root '" + root.string() + "' " + more);
  }
  const fs::path root =
      fs::path(testing::TempDir()) /
      ("undivided_links_" +
       std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
};

TEST(DocsLinks, OfThisTreeAreAlive) { EXPECT_TRUE(passes("")); }

TEST_F(Links, ThatNameTheirLineArePassed) {
  page("[`int answer()` src/a.cpp:2](../src/a.cpp#L2)\n");
  EXPECT_TRUE(good());
}

TEST_F(Links, ToAnotherLineAreFoundAndMended) {
  page("see [`int answer()` src/a.cpp:3](../src/a.cpp#L3).\n");
  EXPECT_FALSE(good());
  EXPECT_TRUE(good("--fix"));
  EXPECT_EQ(page(), "see [`int answer()` src/a.cpp:2](../src/a.cpp#L2).\n");
}

TEST_F(Links, ToWhatIsGoneAreFound) {
  page("[`int answer()` src/b.cpp:2](../src/b.cpp#L2)\n");
  EXPECT_FALSE(good());
  page("[`int nothing()` src/a.cpp:2](../src/a.cpp#L2)\n");
  EXPECT_FALSE(good("--fix"));
}

TEST_F(Links, OfAnotherFormOrThatSayTwoLinesAreFound) {
  page("[a.cpp](../src/a.cpp#L2)\n");
  EXPECT_FALSE(good());
  page("[`int answer()` src/a.cpp:2](../src/a.cpp#L3)\n");
  EXPECT_FALSE(good());
}

}  // namespace
