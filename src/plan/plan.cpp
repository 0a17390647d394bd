// SPDX-License-Identifier: Apache-2.0
// plan: ask each backend, keep every refusal, prepare the first that can. Plan::run: check, launch.
#include "undivided/plan.hpp"

#include <fmt/format.h>

#include "plan/backends.hpp"
#include "plan/library.hpp"

namespace undivided {

struct Plan::State {
  std::shared_ptr<const Spec> spec;
  Bounds bounds;
  Device device;
  std::unique_ptr<Prepared> prepared;
};

namespace {

template <class... T>
[[noreturn]] void refuse_run(fmt::format_string<T...> format, T&&... args) {
  throw Error(Code::invalid_argument, Stage::run, fmt::format(format, std::forward<T>(args)...));
}

std::string refusals_of(const std::vector<Refusal>& refused) {
  std::string text;
  for (const Refusal& r : refused)
    text += fmt::format("{}{}: {} (allowed: {}; got: {})",
                        text.empty() ? "" : "; ",
                        r.backend,
                        r.reason,
                        r.limit,
                        r.got);
  return text;
}

void within(const char* name, std::int64_t got, std::int64_t bound) {
  if (got > bound)
    refuse_run("{} is {}; this plan was made for at most {}: plan again with larger bounds",
               name,
               got,
               bound);
}

void want(const char* name, const View& v, bool wanted) {
  if (wanted && !v) refuse_run("{} is not given, and this plan needs it", name);
}

/// Args must be of the class that the spec describes; contents are not read here.
void check_class(const Spec& s, const Bounds& b, Device device, const Args& a) {
  if (s.op == Operation::merge) {
    for (const auto& [name, v] :
         {std::pair{"a.o", &a.a_o}, {"a.lse", &a.a_lse}, {"o", &a.o}, {"lse", &a.lse}})
      want(name, *v, true);
    within("heads", a.a_o.size(1), b.kv_heads);
    return;
  }
  const View &q = a.q.data, &k = a.kv.k, &v = a.kv.v;
  const int rank_q = s.rows == RowKind::ragged ? 3 : 4, rank_k = s.kv == KvKind::ragged ? 3 : 4;
  if (q.rank != rank_q || k.rank != rank_k || v.rank != rank_k)
    refuse_run("Q is {}, K is {}; this plan is for {}", q.describe(), k.describe(), describe(s));
  if (q.dtype != s.dtype || k.dtype != s.dtype || v.dtype != s.dtype)
    refuse_run("Q is {}, K is {}, V is {}; this plan is for {}",
               q.describe(),
               k.describe(),
               v.describe(),
               name_of(s.dtype));
  if (q.size(-1) != s.dqk || k.size(-1) != s.dqk || v.size(-1) != s.dv)
    refuse_run("Q is {}, V is {}; this plan is for head dims {}/{}",
               q.describe(),
               v.describe(),
               s.dqk,
               s.dv);
  if (q.size(1) != k.size(1) * s.group)
    refuse_run("Q has {} heads and K {}; this plan is for {} query heads per KV head",
               q.size(1),
               k.size(1),
               s.group);
  if (q.device != device || k.device != device || v.device != device)
    refuse_run("Q is on {}; this plan is for {}", to_string(q.device), to_string(device));
  within("batch", s.rows == RowKind::ragged ? a.q.offsets.size(0) - 1 : q.size(0), b.batch);
  within("KV heads", k.size(1), b.kv_heads);
  want("a list of rows", a.lists.q, s.listed);
  if (!s.listed) {  // else their lengths are contents
    within("total query rows",
           s.rows == RowKind::ragged ? q.size(0) : q.size(0) * q.size(2),
           b.total_q);
    if (s.rows == RowKind::dense) within("q_len", q.size(2), b.max_q_len);
    if (s.kv == KvKind::dense) within("k_len", k.size(2), b.max_k_len);
  }
  if (s.kv == KvKind::ragged) within("total key rows", k.size(0), b.total_k);
  if (s.kv == KvKind::paged) within("pages", k.size(0), b.pages);
  want("Q offsets", a.q.offsets, s.rows == RowKind::ragged);
  want("Q lengths", a.q.lengths, s.q_lengths);
  want("K offsets", a.kv.offsets, s.kv == KvKind::ragged);
  want("K lengths", a.kv.lengths, s.k_lengths || s.kv == KvKind::paged);
  want("the page table", a.kv.page_table, s.kv == KvKind::paged);
  want("sink", a.sink, s.sink);
  if (!a.mask || !a.score) refuse_run("mask and score are not bound: use bind() or resolve()");
  if (s.mask_plan && !a.mask_plan)
    refuse_run("this plan needs Args::mask_plan: make it with mask_plan()");
  if (s.mask_plan) {
    if (a.mask_plan->inside != s.inside)
      refuse_run(
          "the mask plan decides Partial blocks by {} and this plan wants {}: make both with "
          "the same Options::inside",
          a.mask_plan->inside == Inside::program ? "the program" : "bits",
          s.inside == Inside::program ? "the program" : "bits");
    const auto& now = a.mask->captures.arrays;
    const auto& then = a.mask_plan->versions;
    if (then.size() != now.size())
      refuse_run(
          "the mask reads {} arrays and the mask plan was made from {}: it belongs to another mask",
          now.size(),
          then.size());
    for (std::size_t i = 0; i < now.size(); ++i)
      if (now[i].version() != then[i])
        refuse_run(
            "array '{}' has changed since the mask plan was made (touch() was called): make it "
            "again with mask_plan()",
            now[i].name());
  }
  if (s.op == Operation::backward) {
    std::int64_t captured = 0;
    for (const View& view : a.d_arrays) captured += view ? view.count() : 0;
    if (s.captured) within("elements of captured gradients", captured, b.captured);
    want("O", a.o, true);
    want("LSE", a.lse, true);
    want("the gradient of O", a.dout.data, true);
    want("dQ", a.dq, s.want_dq);
    want("dK", a.dk, s.want_dk);
    want("dV", a.dv, s.want_dv);
    want("the gradient of LSE", a.dlse, s.dlse);
  } else {
    want("O", a.o, true);
  }
}

}  // namespace

std::size_t Plan::workspace() const { return state_->prepared->workspace(); }
const Explanation& Plan::explanation() const { return state_->prepared->explanation; }
const Spec& Plan::spec() const { return *state_->spec; }
const Bounds& Plan::bounds() const { return state_->bounds; }

void Plan::run(const Args& args, void* workspace, const Context& context) const {
  check_class(*state_->spec, state_->bounds, state_->device, args);
  if (!workspace && state_->prepared->workspace() > 0)
    refuse_run("no workspace is given; this plan needs {} bytes", state_->prepared->workspace());
  state_->prepared->run(args, workspace, context);
}

Plan plan(const Spec& spec, const Bounds& bounds, Device device, const Context& context) {
  Library& library = library_of(context);
  const std::shared_ptr<const Spec> interned = library.intern(spec);
  return library.plan(interned, bounds, device, context, [&] {
    std::vector<Refusal> refused;
    const BackendRow* chosen = nullptr;
    for (const BackendRow& row : backends()) {
      const auto refuse = [&](const char* reason, std::string limit, std::string got) {
        refused.push_back({row.name, reason, std::move(limit), std::move(got)});
      };
      if (context.backend != Backend::automatic && context.backend != row.id) {
        refuse("another backend was asked for", row.name, name_of(context.backend));
      } else if (row.device != device.kind) {
        refuse("the data is elsewhere",
               row.device == Device::Kind::cpu ? "cpu" : "cuda",
               to_string(device));
      } else if (context.backend == Backend::automatic && row.id == Backend::reference &&
                 spec.dtype != DType::f64) {
        refuse("the oracle is chosen by itself for float64 only", "f64", name_of(spec.dtype));
      } else if (chosen) {
        refuse("an earlier backend was chosen", chosen->name, row.name);
      } else if (Support s = row.support(*interned, bounds, context); !s.ok) {
        refused.push_back({row.name, s.reason, s.limit, s.got});
      } else {
        chosen = &row;
      }
    }
    if (!chosen)
      throw Error(Code::unsupported,
                  Stage::plan,
                  fmt::format("no backend can run {}: {}", describe(spec), refusals_of(refused)));
    auto state = std::make_shared<Plan::State>();
    state->spec = interned;
    state->bounds = bounds;
    state->device = device;
    state->prepared = chosen->prepare(*interned, bounds, device, context);
    Explanation& e = state->prepared->explanation;
    e.refused = std::move(refused);
    e.workspace = state->prepared->workspace();
    return Plan(std::shared_ptr<const Plan::State>(std::move(state)));
  });
}

std::string Plan::explain() const {
  const Explanation& e = explanation();
  std::string text = fmt::format("{}\n  backend      {}\n  kernel       {}\n  tiles        {}\n",
                                 describe(spec()),
                                 e.backend,
                                 e.kernel,
                                 e.tiles);
  text += fmt::format("  splits       {}\n  determinism  {}\n  workspace    {} bytes\n",
                      e.splits,
                      e.determinism,
                      e.workspace);
  text += fmt::format("  at the bounds: {:.4g} GFLOP, {:.4g} MB", e.flops * 1e-9, e.bytes * 1e-6);
  if (e.floor_seconds > 0) text += fmt::format(", no faster than {:.4g} ms", e.floor_seconds * 1e3);
  text += "\n";
  for (const std::string& note : e.notes) text += fmt::format("  note         {}\n", note);
  for (const Refusal& r : e.refused)
    text +=
        fmt::format("  not {:<9} {} (allowed: {}; got: {})\n", r.backend, r.reason, r.limit, r.got);
  return text;
}

}  // namespace undivided
