// SPDX-License-Identifier: Apache-2.0
// Claims about files: round trips, and one clear message for every way a file can lie.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/array_file.hpp"
#include "core/generator.hpp"
#include "core/npy.hpp"
#include "core/safetensors.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              ("undivided-" + std::string(info->name()) + "-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  fs::path folder_;
};

void same(const View& a, const View& b) {
  ASSERT_EQ(a.describe(), b.describe());
  const Tensor x = converted(a, a.dtype), y = converted(b, b.dtype);
  EXPECT_EQ(std::memcmp(x.data, y.data, static_cast<std::size_t>(a.count()) * size_of(a.dtype)), 0);
}

std::string npy(const std::string& header, std::size_t data_bytes, char version = 1) {
  std::string text = std::string("\x93NUMPY") + version + '\0';
  text += static_cast<char>(header.size() & 255);
  text += static_cast<char>(header.size() >> 8);
  if (version > 1) text += std::string(2, '\0');
  return text + header + std::string(data_bytes, '\1');
}

std::string safetensors(const std::string& header, std::size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(header.size() >> (8 * i));
  return text + header + std::string(data_bytes, '\1');
}

std::string npy_refusal(const std::string& bytes) {
  try {
    read_npy(ByteSource::memory(bytes.data(), bytes.size(), "a.npy"));
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::io);
    EXPECT_EQ(e.stage(), Stage::parse);
    return e.what();
  }
  return "read without complaint";
}

std::string safetensors_refusal(const std::string& bytes) {
  try {
    const Safetensors file(ByteSource::memory(bytes.data(), bytes.size(), "a.safetensors"));
    for (const auto& e : file.entries()) file.read(e.name);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::io);
    EXPECT_EQ(e.stage(), Stage::parse);
    return e.what();
  }
  return "read without complaint";
}

TEST_F(Files, NpyKeepsEveryTypeAndStride) {
  for (DType dtype :
       {DType::f64, DType::f32, DType::f16, DType::i8, DType::i32, DType::i64, DType::boolean}) {
    const Tensor t = Tensor::empty(dtype, {2, 3, 5});
    fill_uniform(t, 3, dtype == DType::boolean ? 0 : -100, dtype == DType::boolean ? 2 : 100);
    write_npy(path("t.npy"), t);
    same(read_npy(path("t.npy")), t);
    write_npy(path("t.npy"), t.permuted({2, 0, 1}));
    same(read_npy(path("t.npy")), t.permuted({2, 0, 1}));
    EXPECT_EQ(fs::file_size(path("t.npy")) - 30 * size_of(dtype), 128u);  // as NumPy aligns it
  }
  const Tensor empty = Tensor::zeros(DType::f32, {0, 4});
  write_npy(path("e.npy"), empty);
  same(read_npy(path("e.npy")), empty);
}

TEST_F(Files, NpyReadsHeadersOfEveryVersionAndWidensBytes) {
  for (char version : {1, 2, 3}) {
    const std::string bytes =
        npy("{\"shape\": (3,), 'fortran_order':True,'descr':'|u1'}  \n", 3, version);
    const Tensor t = read_npy(ByteSource::memory(bytes.data(), bytes.size(), "a.npy"));
    EXPECT_EQ(t.describe(), "i32 [3]");
    for (int i = 0; i < 3; ++i) EXPECT_EQ(t.ptr<std::int32_t>()[i], 1);
  }
}

TEST_F(Files, NpyRefusesWhatLies) {
  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
  EXPECT_EQ(npy_refusal(npy(good, 24)), "read without complaint");
  EXPECT_EQ(npy_refusal(npy(good, 20)),
            "a.npy: is truncated: f32 [2, 3] needs 24 bytes of data, the file has 20");
  EXPECT_EQ(npy_refusal(npy(good, 25)),
            "a.npy: is longer than its header says: f32 [2, 3] needs 24 bytes of data, the file "
            "has 25");
  EXPECT_EQ(npy_refusal(""), "a.npy: is not a .npy file (it does not begin with \\x93NUMPY)");
  EXPECT_EQ(npy_refusal("PK\3\4 an archive"),
            "a.npy: is not a .npy file (it does not begin with \\x93NUMPY)");
  EXPECT_EQ(npy_refusal("\x93NUMPY\1"), "a.npy: is truncated inside the .npy header");
  EXPECT_EQ(npy_refusal(npy(good, 0).substr(0, 30)),
            "a.npy: is truncated: bytes 10 to 70 are needed, the file has 30");
  EXPECT_EQ(npy_refusal(npy(good, 24, 4)), "a.npy: is .npy version 4; versions 1 to 3 are read");
  EXPECT_EQ(npy_refusal(std::string("\x93NUMPY\2\0\xff\xff\xff\xff", 12)),
            "a.npy: claims a header of 4294967295 bytes; allowed: up to 65536");
  EXPECT_EQ(npy_refusal(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}", 24)),
            "a.npy: is in Fortran order; save it in C order (numpy.ascontiguousarray)");
  EXPECT_EQ(npy_refusal(npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}", 24)),
            "a.npy: is big endian ('>f4'); save it little endian, as '<f4'");
  EXPECT_EQ(npy_refusal(npy("{'descr': '<c8', 'fortran_order': False, 'shape': (2, 3)}", 48)),
            "a.npy: has elements of type '<c8'; allowed: f8, f4, f2, i8, i4, i1, u1 and b1");
  EXPECT_EQ(npy_refusal(npy("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,)}", 8)),
            "a.npy: has structured elements; allowed: f8, f4, f2, i8, i4, i1, u1 and b1");
  EXPECT_EQ(npy_refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", 4)),
            "a.npy: the array is a single value; save it with the shape [1]");
  EXPECT_EQ(npy_refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1)}", 4)),
            "a.npy: the array has 5 axes; allowed: 1 to 4");
  EXPECT_EQ(npy_refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, "
                            "4294967296)}",
                            4)),
            "a.npy: is truncated: the array has the shape [4294967296, 4294967296], more elements "
            "than the file's 89 bytes");
  EXPECT_THAT(npy_refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", 4)),
              HasSubstr("expected a size of 0 or more"));
  EXPECT_THAT(npy_refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': "
                              "(99999999999999999999,)}",
                              4)),
              HasSubstr("expected a size of 0 or more"));
  EXPECT_THAT(npy_refusal(npy("{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1,)}", 4)),
              HasSubstr("expected True or False"));
  EXPECT_THAT(npy_refusal(npy("{'descr': '<f4', 'shape': (1,)}", 4)),
              HasSubstr("descr, fortran_order and shape are all needed"));
  EXPECT_THAT(npy_refusal(npy("{'descr': '<f4', 'descr': '<f8'}", 4)), HasSubstr("each once"));
  EXPECT_THAT(npy_refusal(npy("{'descr': '<f4", 4)), HasSubstr("a string with an end"));
  EXPECT_THAT(npy_refusal(npy("", 4)), HasSubstr("expected '{'"));
}

TEST_F(Files, NpyRefusesTypesItHasNoNameFor) {
  const Tensor t = Tensor::zeros(DType::bf16, {2});
  try {
    write_npy(path("t.npy"), t);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr(".npy has no bf16; write to FILE.safetensors:NAME, or as f32"));
  }
  EXPECT_EQ(files(), 0u);
}

TEST_F(Files, SafetensorsKeepEveryType) {
  std::vector<std::pair<std::string, View>> all;
  std::vector<Tensor> tensors;
  for (int i = 0; i < 10; ++i) {
    const auto dtype = static_cast<DType>(i);
    tensors.push_back(Tensor::empty(dtype, {3, 1 + i}));
    fill_uniform(tensors.back(), 7, 0, dtype == DType::boolean ? 2 : 100);
    all.emplace_back(name_of(dtype), tensors.back());
  }
  write_safetensors(path("all.safetensors"), all, {{"made by", "a test"}});
  const Safetensors file = Safetensors::open(path("all.safetensors"));
  EXPECT_EQ(file.metadata().at("made by"), "a test");
  ASSERT_EQ(file.entries().size(), 10u);
  for (const auto& [name, view] : all) same(file.read(name), view);
  for (const auto& e : file.entries()) {
    const DType dtype = dtype_from_name(e.name);
    EXPECT_EQ(e.begin % size_of(dtype), 0u) << e.name;
  }
  EXPECT_EQ(read_safetensors(path("all.safetensors")).size(), 10u);
  same(read_array(path("all.safetensors") + ":bf16"), tensors[3]);
}

TEST_F(Files, SafetensorsRefuseWhatLies) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& at) {
    return R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + at +
           "}}";
  };
  const std::string good = one("F32", "[2]", "[0,8]");
  EXPECT_EQ(safetensors_refusal(safetensors(good, 8)), "read without complaint");
  EXPECT_EQ(safetensors_refusal(safetensors("{}", 0)), "read without complaint");
  EXPECT_EQ(safetensors_refusal(safetensors(one("U8", "[8]", "[0,8]"), 8)),
            "read without complaint");
  EXPECT_EQ(safetensors_refusal("1234567"),
            "a.safetensors: is not a safetensors file: it has fewer than 8 bytes");
  EXPECT_THAT(safetensors_refusal(safetensors(good, 0).substr(0, 20)),
              HasSubstr("it claims a header of 54 bytes and has 12"));
  EXPECT_THAT(safetensors_refusal(std::string(16, '\xff')),
              HasSubstr("claims a header of 18446744073709551615 bytes"));
  EXPECT_EQ(safetensors_refusal(safetensors("{\"x\"", 0)),
            "a.safetensors: has a header that is not valid JSON");
  EXPECT_EQ(safetensors_refusal(safetensors("[1]", 0)),
            "a.safetensors: has a header that is not a JSON object");
  EXPECT_EQ(safetensors_refusal(safetensors(std::string(100000, '['), 0)),
            "a.safetensors: has a header with too many nested levels");
  EXPECT_EQ(safetensors_refusal(safetensors(good, 7)),
            "a.safetensors: tensor 'x' lies at bytes 0 to 8, outside the 7 bytes of data; the file "
            "is truncated or its header wrong");
  EXPECT_EQ(safetensors_refusal(safetensors(good, 9)),
            "a.safetensors: has 1 bytes after the last tensor; the header is wrong");
  EXPECT_EQ(safetensors_refusal(safetensors(one("F32", "[3]", "[0,8]"), 8)),
            "a.safetensors: tensor 'x': f32 [3] needs 12 bytes, its offsets span 8");
  EXPECT_THAT(safetensors_refusal(safetensors(one("F32", "[2]", "[8,0]"), 8)),
              HasSubstr("outside"));
  EXPECT_THAT(safetensors_refusal(safetensors(one("F32", "[2]", "[0,-8]"), 8)),
              HasSubstr("sizes and offsets are whole numbers"));
  EXPECT_THAT(safetensors_refusal(safetensors(one("F32", "[1.5]", "[0,8]"), 8)),
              HasSubstr("sizes and offsets are whole numbers"));
  EXPECT_THAT(safetensors_refusal(safetensors(one("F32", "[4294967296,4294967296]", "[0,8]"), 8)),
              HasSubstr("more elements than the file's"));
  EXPECT_THAT(safetensors_refusal(safetensors(one("F32", "[9223372036854775808]", "[0,8]"), 8)),
              HasSubstr("allowed: 0 to 2^46"));
  EXPECT_EQ(safetensors_refusal(safetensors(one("C64", "[1]", "[0,8]"), 8)),
            "a.safetensors: tensor 'x' has the type C64; allowed: F64, F32, F16, BF16, F8_E4M3, "
            "F8_E5M2, I64, I32, I8, U8 and BOOL");
  EXPECT_EQ(safetensors_refusal(safetensors(R"({"x":3})", 0)),
            "a.safetensors: tensor 'x' needs a dtype, a shape and two data_offsets");
  const std::string x = R"({"x":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},)";
  EXPECT_EQ(safetensors_refusal(
                safetensors(x + R"("y":{"dtype":"I8","shape":[8],"data_offsets":[4,12]}})", 12)),
            "a.safetensors: tensor 'y' begins at byte 4 where 8 was expected: tensors overlap");
  EXPECT_EQ(safetensors_refusal(
                safetensors(x + R"("y":{"dtype":"I8","shape":[8],"data_offsets":[9,17]}})", 17)),
            "a.safetensors: tensor 'y' begins at byte 9 where 8 was expected: there is a hole");
  EXPECT_EQ(safetensors_refusal(
                safetensors(x + R"("x":{"dtype":"I8","shape":[8],"data_offsets":[8,16]}})", 16)),
            "a.safetensors: names 'x' twice");
  EXPECT_EQ(safetensors_refusal(safetensors(R"({"__metadata__":{"a":1}})", 0)),
            "a.safetensors: metadata 'a' is not text");
}

TEST_F(Files, MissingThingsAreNamed) {
  const auto refusal = [](const std::string& spec) -> std::string {
    try {
      read_array(spec);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::io);
      return e.what();
    }
    return "read without complaint";
  };
  EXPECT_EQ(refusal(path("no.npy")), path("no.npy") + ": No such file or directory");
  EXPECT_EQ(refusal(folder_.string()), folder_.string() + ": is not a regular file");
  const Tensor t = Tensor::zeros(DType::f32, {2});
  const std::string file = path("two.safetensors");
  write_safetensors(file, {{"a", t}, {"b", t}});
  EXPECT_EQ(refusal(file + ":c"), file + ": has no tensor 'c'; it has: a, b");
  EXPECT_EQ(refusal(file), file + ": has 2 tensors; name one: " + file + ":NAME, for example a");
}

TEST_F(Files, AnUnfinishedFileLeavesNoTrace) {
  std::ofstream(path("old.npy")) << "old";
  {
    AtomicFile file(path("old.npy"));
    file.write("half of the new");
  }
  EXPECT_EQ(files(), 1u);
  std::string content;
  std::ifstream(path("old.npy")) >> content;
  EXPECT_EQ(content, "old");
  EXPECT_THROW(AtomicFile(path("no/such/folder.npy")), Error);
  EXPECT_THROW(AtomicFile(folder_.string()), Error);
}

TEST_F(Files, ADeviceIsWrittenInPlace) {
  AtomicFile file("/dev/null");
  file.write("x");
  file.publish();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(Files, SeveralOutputsAppearTogether) {
  const Tensor a = random_normal(DType::f32, {3}, 1), b = random_normal(DType::bf16, {4}, 2);
  OutputSet outputs;
  outputs.open(path("a.npy"));
  outputs.open(path("b.safetensors:b"));
  outputs.open(path("b.safetensors:c"));
  EXPECT_THROW(outputs.open(path("a.npy")), Error);
  EXPECT_THROW(outputs.open(path("a.txt")), Error);
  EXPECT_THROW(outputs.set(path("a.npy"), b), Error);
  outputs.set(path("a.npy"), a);
  outputs.set(path("b.safetensors:b"), b);
  outputs.set(path("b.safetensors:c"), a);
  EXPECT_FALSE(fs::exists(path("a.npy")));
  outputs.publish();
  EXPECT_EQ(files(), 2u);
  same(read_array(path("a.npy")), a);
  same(read_array(path("b.safetensors:b")), b);
  same(read_array(path("b.safetensors:c")), a);
}

}  // namespace
}  // namespace undivided
