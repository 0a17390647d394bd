// SPDX-License-Identifier: Apache-2.0
// Names inside a builder: slots, parameters, and programs that are copied in.
#include <fmt/format.h>

#include <algorithm>

#include "expr/builder.hpp"
#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

const Array* find_array(const Captures& captures, const std::string& name) {
  for (const Array& a : captures.arrays)
    if (a.name() == name) return &a;
  return nullptr;
}

}  // namespace

// Two handles made separately keep separate versions, so they are different arrays.
bool same_storage(const Array& a, const Array& b) { return a.owner() == b.owner(); }

std::string Builder::free_name(const std::string& wanted) const {
  auto taken = [&](const std::string& name) {
    return std::any_of(program_.slots.begin(),
                       program_.slots.end(),
                       [&](const Slot& s) { return s.name == name; }) ||
           std::any_of(program_.params.begin(), program_.params.end(), [&](const ParamDecl& d) {
             return d.name == name;
           });
  };
  if (!taken(wanted)) return wanted;
  for (int i = 2;; ++i) {
    std::string name = fmt::format("{}_{}", wanted, i);
    if (!taken(name)) return name;
  }
}

std::int32_t Builder::param(const std::string& name, Type type, double value) {
  check_name(name, "parameter");
  if (type == Type::f32) value = static_cast<double>(static_cast<float>(value));
  if (type == Type::i32 && (value != std::floor(value) || value < INT32_MIN || value > INT32_MAX))
    refuse(Stage::bind,
           fmt::format("parameter \"{}\" is i32, but its value is {}; allowed are whole numbers in "
                       "int32",
                       name,
                       value));
  Node n;
  n.op = Op::param;
  n.type = type;
  for (std::size_t i = 0; i < program_.params.size(); ++i) {
    const ParamDecl& d = program_.params[i];
    // A renamed twin is found again by its stem, so joining the same program twice adds nothing.
    const bool stem = d.name == name || d.name.rfind(name + "_", 0) == 0;
    if (stem && d.type == type && same_bits(d.value, value) &&
        (d.name == name || renamed_.count(d.name))) {
      n.slot = static_cast<std::int32_t>(i);
      return push(n);
    }
  }
  const std::string chosen = free_name(name);
  if (chosen != name) renamed_.insert(chosen);
  n.slot = static_cast<std::int32_t>(program_.params.size());
  program_.params.push_back({chosen, type, value, is_lifted_name(chosen)});
  captures_.params.emplace_back(chosen, value);
  return push(n);
}

std::int32_t Builder::slot(const Array& array) {
  for (std::size_t i = 0; i < program_.slots.size(); ++i) {
    const Array* held = find_array(captures_, program_.slots[i].name);
    if (held && same_storage(*held, array)) return static_cast<std::int32_t>(i);
  }
  const std::string wanted = array.name().empty() ? "array_1" : array.name();
  check_name(wanted, "array");
  for (const Slot& s : program_.slots)
    if (s.name == wanted && !find_array(captures_, s.name))
      refuse(
          Stage::bind,
          fmt::format("array \"{}\" has contents in one program and none in the other; bind both "
                      "or rename one",
                      wanted));
  const std::string name = free_name(wanted);
  program_.slots.push_back({name, array.view().dtype, array.view().rank});
  captures_.arrays.push_back(array.named(name));
  return static_cast<std::int32_t>(program_.slots.size() - 1);
}

std::int32_t Builder::slot(const Slot& declared) {
  check_name(declared.name, "array");
  for (std::size_t i = 0; i < program_.slots.size(); ++i) {
    if (program_.slots[i].name != declared.name) continue;
    if (find_array(captures_, declared.name))
      refuse(
          Stage::bind,
          fmt::format("array \"{}\" has contents in one program and none in the other; bind both "
                      "or rename one",
                      declared.name));
    if (!(program_.slots[i] == declared))
      refuse(Stage::bind,
             fmt::format("array \"{}\" is declared twice with different types; rename one",
                         declared.name));
    return static_cast<std::int32_t>(i);
  }
  program_.slots.push_back(declared);
  return static_cast<std::int32_t>(program_.slots.size() - 1);
}

std::int32_t Builder::import(const Program& p, const Captures& captures, std::int32_t score_node) {
  std::vector<std::int32_t> slot_at, param_at, place(p.nodes.size());
  for (const Slot& s : p.slots) {
    const Array* held = find_array(captures, s.name);
    slot_at.push_back(held ? slot(*held) : slot(s));
  }
  for (const ParamDecl& d : p.params) {
    double value = d.value;
    for (const auto& [name, given] : captures.params)
      if (name == d.name) value = given;
    const std::int32_t node = param(d.name, d.type, value);
    param_at.push_back(program_.nodes[static_cast<std::size_t>(node)].slot);
  }
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    Node n = p.nodes[i];
    if (n.op == Op::score && score_node >= 0) {
      place[i] = score_node;
      continue;
    }
    for (auto& o : n.operand)
      if (o >= 0) o = place[static_cast<std::size_t>(o)];
    if (n.op == Op::load) n.slot = slot_at[static_cast<std::size_t>(n.slot)];
    if (n.op == Op::param) n.slot = param_at[static_cast<std::size_t>(n.slot)];
    place[i] = push(n);
  }
  return place[static_cast<std::size_t>(p.roots.front())];
}

Captures captures_for(const Program& p, const Captures& from) {
  Captures out;
  for (const Slot& s : p.slots)
    if (const Array* held = find_array(from, s.name)) out.arrays.push_back(*held);
  for (const ParamDecl& d : p.params)
    if (!d.lifted) out.params.emplace_back(d.name, d.value);
  return out;
}

bool same_meaning(const Program& a, const Captures& ca, const Program& b, const Captures& cb) {
  if (!same_structure(a, b)) return false;
  for (std::size_t i = 0; i < a.params.size(); ++i)
    if (!same_bits(a.params[i].value, b.params[i].value)) return false;
  for (const Slot& s : a.slots) {
    const Array *x = find_array(ca, s.name), *y = find_array(cb, s.name);
    if ((x == nullptr) != (y == nullptr)) return false;
    if (x && !same_storage(*x, *y)) return false;
  }
  return true;
}

}  // namespace undivided::expr
