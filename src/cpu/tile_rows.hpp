// SPDX-License-Identifier: Apache-2.0
// Rows of K and V where the caller has them, and what is asked for beside those that are met.
// Included once, inside the namespace of an ISA.

/// Asks for what is due after work of some weight.
UNDIVIDED_VEC void ask(Ahead& a, int weight) {
  a.spent += weight;
  for (a.due += weight * a.pace; a.due >= Ahead::whole && a.next != a.end; a.due -= Ahead::whole) {
    const std::byte* piece = *a.next++;
    __builtin_prefetch(piece, 0, 2);
    __builtin_prefetch(piece + a.apart, 0, 2);
    if (a.far == 0) continue;
    __builtin_prefetch(piece + a.far, 0, 2);
    __builtin_prefetch(piece + a.far + a.apart, 0, 2);
  }
}

/// Rows at equal distances.
struct EvenRows {
  const std::byte* at;
  std::int64_t stride;
  __attribute__((always_inline)) const std::byte* operator[](int i) const {
    return at + i * stride;
  }
  __attribute__((always_inline)) void operator+=(int n) { at += n * stride; }
};
/// Rows wherever a list has them. `parts` calls f(some of them, how many) for all.
struct ListedRows {
  const std::byte* const* list;
  __attribute__((always_inline)) const std::byte* operator[](int i) const { return list[i]; }
  __attribute__((always_inline)) void operator+=(int n) { list += n; }
  template <int>
  __attribute__((always_inline)) void ask(int, std::int64_t) const {}
  template <class F>
  __attribute__((always_inline)) void parts(int rows, F&& f) const {
    f(*this, rows);
  }
};
/// What is asked for beside a row that is met: every line, or every other one, of the row `ahead`
/// after it, and all of the row `again` after it, since a processor drops requests that come too
/// fast. Of a stream it brings what lies ahead by itself.
struct Beside {};
struct Stream : Beside {
  static constexpr int ahead = 16, step = 128, again = 0;
};
struct Spread : Beside {
  static constexpr int ahead = key_block, step = 64, again = 16;
};

/// Rows of a tile that is done at once, and those that are asked for beside them.
template <class Asks>
struct GroupedRows {
  RowTile::Rows rows;
  struct Part {
    EvenRows now, ahead, again;
    __attribute__((always_inline)) const std::byte* operator[](int i) const { return now[i]; }
    __attribute__((always_inline)) void operator+=(int n) {
      now += n;
      ahead += n;
      again += n;
    }
    template <int bytes>
    __attribute__((always_inline)) void ask(int i, std::int64_t offset) const {
#pragma GCC unroll 16
      for (int at = 0; at < bytes; at += Asks::step)
        __builtin_prefetch(ahead[i] + offset + at, 0, 2);
#pragma GCC unroll 16
      for (int at = 0; Asks::again && at < bytes; at += 64)
        __builtin_prefetch(again[i] + offset + at, 0, 2);
    }
  };
  /// From row r on, until the end of its group.
  __attribute__((always_inline)) Part from(int r) const {
    const auto even = [&](int i) {
      return EvenRows{rows.at ? rows.at + i * rows.stride
                              : rows.groups[i / row_group] + i % row_group * rows.stride,
                      rows.stride};
    };
    return {even(r), even(r + Asks::ahead), even(r + Asks::again)};
  }
  template <class F>
  __attribute__((always_inline)) void parts(int n, F&& f) const {
    const int group = rows.at ? key_block : row_group;
#pragma GCC unroll 1
    for (int r = 0; r < n; r += group) f(from(r), n - r < group ? n - r : group);
  }
};

/// Products ask by the weight of their work, or beside the rows that they meet.
UNDIVIDED_VEC void ask(const Beside&, int) {}
