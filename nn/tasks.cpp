// SPDX-License-Identifier: Apache-2.0
// The tasks: reversing digits, dates to ISO 8601, number words to digits. Pairs follow from hashes.
#include "undivided/nn/tasks.hpp"

#include <fmt/format.h>

#include <array>

#include "nn/blas.hpp"

namespace undivided::nn {
namespace {

std::uint64_t hash(std::uint64_t a, std::uint64_t b, std::uint64_t salt) {
  Pass mixer;
  mixer.seed = a;
  mixer.seed = mixer.next_seed() ^ b;
  mixer.seed = mixer.next_seed() ^ salt;
  return mixer.next_seed();
}
constexpr std::uint64_t pool = 10000;  // training pairs of dates and numbers

// Every tenth item, by hash, is held out.
bool held_out(std::uint64_t item) { return hash(item, 17, 0) % 10 == 0; }
template <class Draw>
std::uint64_t draw(bool test, std::uint64_t seed, std::uint64_t i, Draw&& item) {
  for (std::uint64_t attempt = 0;; ++attempt) {
    const std::uint64_t x = item(hash(seed, i, attempt));
    if (held_out(x) == test) return x;
  }
}

class Reverse final : public Task {
 public:
  std::string name() const override { return "reverse"; }
  std::string alphabet() const override { return "0123456789"; }
  Pair training(std::uint64_t seed, std::uint64_t i) const override { return pair(false, seed, i); }
  Pair test(std::uint64_t i) const override { return pair(true, 0, i); }

 private:
  static Pair pair(bool test, std::uint64_t seed, std::uint64_t i) {
    const std::uint64_t x = draw(test, seed, i, [](std::uint64_t h) { return h % 10000000000u; });
    std::string digits = fmt::format("{:010}", x);
    return {digits, {digits.rbegin(), digits.rend()}};
  }
};

constexpr std::array months = {"january",
                               "february",
                               "march",
                               "april",
                               "may",
                               "june",
                               "july",
                               "august",
                               "september",
                               "october",
                               "november",
                               "december"};
constexpr std::array weekdays = {
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"};

class Dates final : public Task {
 public:
  std::string name() const override { return "dates"; }
  std::string alphabet() const override { return "0123456789 ,-./abcdefghijlmnoprstuvwy"; }
  Pair training(std::uint64_t seed, std::uint64_t i) const override {
    return pair(false, seed, i % pool);
  }
  Pair test(std::uint64_t i) const override { return pair(true, 0, i); }

 private:
  // Days since 1 March 1900 become a calendar date (after the civil-from-days method).
  static Pair pair(bool test, std::uint64_t seed, std::uint64_t i) {
    const std::uint64_t day = draw(test, seed, i, [](std::uint64_t h) { return h % 72990; });
    const std::uint64_t z = day + 693960;  // days since 1 March of year 0
    const std::uint64_t era = z / 146097, doe = z % 146097;
    const std::uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    const std::uint64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    const std::uint64_t d = doy - (153 * mp + 2) / 5 + 1, m = mp < 10 ? mp + 3 : mp - 9;
    const std::uint64_t y = yoe + era * 400 + (m <= 2);
    const std::string month = months[m - 1];
    const char* week = weekdays[(day + 3) % 7];  // 1 March 1900 was a Thursday
    const char* tail = d % 10 == 1 && d != 11   ? "st"
                       : d % 10 == 2 && d != 12 ? "nd"
                       : d % 10 == 3 && d != 13 ? "rd"
                                                : "th";
    std::string text;
    switch (hash(day, i, seed + 5) % 6) {
      case 0:
        text = fmt::format("{}, {} {}, {}", week, month, d, y);
        break;
      case 1:
        text = fmt::format("{} {} {}", d, month, y);
        break;
      case 2:
        text = fmt::format("{}/{}/{}", m, d, y);
        break;
      case 3:
        text = fmt::format("{}.{}.{}", d, m, y);
        break;
      case 4:
        text = fmt::format("{} {}, {}", month.substr(0, 3), d, y);
        break;
      default:
        text = fmt::format("the {}{} of {} {}", d, tail, month, y);
    }
    return {text, fmt::format("{:04}-{:02}-{:02}", y, m, d)};
  }
};

class Numbers final : public Task {
 public:
  std::string name() const override { return "numbers"; }
  std::string alphabet() const override { return "0123456789 -abdefghilnorstuvwxyz"; }
  Pair training(std::uint64_t seed, std::uint64_t i) const override {
    return pair(false, seed, i % pool);
  }
  Pair test(std::uint64_t i) const override { return pair(true, 0, i); }

 private:
  static std::string below_thousand(std::uint64_t n) {
    static constexpr std::array small = {"zero",    "one",     "two",       "three",    "four",
                                         "five",    "six",     "seven",     "eight",    "nine",
                                         "ten",     "eleven",  "twelve",    "thirteen", "fourteen",
                                         "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
    static constexpr std::array tens = {
        "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"};
    if (n >= 100)
      return fmt::format("{} hundred{}{}",
                         small[n / 100],
                         n % 100 ? " " : "",
                         n % 100 ? below_thousand(n % 100) : "");
    if (n < 20) return small[n];
    return n % 10 ? fmt::format("{}-{}", tens[n / 10], small[n % 10]) : tens[n / 10];
  }
  static Pair pair(bool test, std::uint64_t seed, std::uint64_t i) {
    const std::uint64_t n = draw(test, seed, i, [](std::uint64_t h) { return h % 100000; });
    std::string text;
    if (n >= 1000) text = below_thousand(n / 1000) + " thousand";
    if (n % 1000 != 0 || n == 0) text += (text.empty() ? "" : " ") + below_thousand(n % 1000);
    return {text, std::to_string(n)};
  }
};

}  // namespace

std::vector<std::int32_t> Task::encode(const std::string& text) const {
  const std::string letters = alphabet();
  std::vector<std::int32_t> ids;
  for (const char c : text) {
    const std::size_t at = letters.find(c);
    require(at != std::string::npos,
            fmt::format(
                "task {} does not know the character '{}'; it knows \"{}\"", name(), c, letters));
    ids.push_back(static_cast<std::int32_t>(at) + 3);
  }
  return ids;
}

std::string Task::decode(const std::vector<std::int32_t>& ids) const {
  const std::string letters = alphabet();
  std::string text;
  for (const std::int32_t id : ids)
    text += id >= 3 && id < vocabulary() ? letters[static_cast<std::size_t>(id - 3)] : '?';
  return text;
}

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = {"reverse", "dates", "numbers"};
  return names;
}

std::shared_ptr<const Task> make_task(const std::string& name) {
  if (name == "reverse") return std::make_shared<Reverse>();
  if (name == "dates") return std::make_shared<Dates>();
  if (name == "numbers") return std::make_shared<Numbers>();
  require(false,
          fmt::format("there is no task '{}'; allowed: {}", name, fmt::join(task_names(), ", ")));
  return nullptr;
}

Tokens batch_of(const std::vector<std::vector<std::int32_t>>& sequences) {
  Tokens t;
  t.extent.batch = static_cast<std::int64_t>(sequences.size());
  for (const auto& s : sequences) {
    t.extent.lengths.push_back(static_cast<std::int32_t>(s.size()));
    t.extent.tokens = std::max(t.extent.tokens, static_cast<std::int64_t>(s.size()));
  }
  for (const auto& s : sequences) {
    t.ids.insert(t.ids.end(), s.begin(), s.end());
    t.ids.resize(t.ids.size() + static_cast<std::size_t>(t.extent.tokens) - s.size(), 0);
  }
  return t;
}

}  // namespace undivided::nn
