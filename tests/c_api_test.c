/* SPDX-License-Identifier: Apache-2.0 */
/* Claims: an engine in plain C can run attention, its gradient and a plan, and reads why a call was
 * refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "undivided/c.h"

static int failures = 0;
#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                     \
    }                                                                 \
  } while (0)

static undivided_view view4(float* data, int64_t a, int64_t b, int64_t c, int64_t d) {
  undivided_view v = {sizeof v, data, UNDIVIDED_F32, 0, 0, 4, {a, b, c, d}, {0, 0, 0, 0}};
  return v;
}
static undivided_view view3(float* data, int64_t a, int64_t b, int64_t c) {
  undivided_view v = {sizeof v, data, UNDIVIDED_F32, 0, 0, 3, {a, b, c, 0}, {0, 0, 0, 0}};
  return v;
}
static undivided_view vector(void* data, int32_t dtype, int64_t n) {
  undivided_view v = {sizeof v, data, dtype, 0, 0, 1, {n, 0, 0, 0}, {0, 0, 0, 0}};
  return v;
}

enum { HQ = 4, HKV = 2, NQ = 5, NK = 7, D = 8 };
static float q[HQ * NQ * D], k[HKV * NK * D], v[HKV * NK * D], dout[HQ * NQ * D];
static float o[HQ * NQ * D], lse[HQ * NQ];

static void fill(float* x, int n, float c) {
  for (int i = 0; i < n; ++i) x[i] = sinf(0.1f * (c + 1) * (float)i + c);
}

/* The textbook, in double: causal at the end, with a bias of slope * (k - q). */
static void textbook(double* out, double* out_lse, double slope) {
  for (int h = 0; h < HQ; ++h)
    for (int i = 0; i < NQ; ++i) {
      double s[NK], sum = 0, top = -INFINITY;
      const int position = i + NK - NQ;
      for (int j = 0; j <= position; ++j) {
        s[j] = 0;
        for (int d = 0; d < D; ++d)
          s[j] += (double)q[(h * NQ + i) * D + d] * k[(h / (HQ / HKV) * NK + j) * D + d];
        s[j] = s[j] / sqrt(D) + slope * (j - position);
        if (s[j] > top) top = s[j];
      }
      for (int j = 0; j <= position; ++j) sum += exp(s[j] - top);
      out_lse[h * NQ + i] = top + log(sum);
      for (int d = 0; d < D; ++d) {
        double x = 0;
        for (int j = 0; j <= position; ++j)
          x += exp(s[j] - top) / sum * v[(h / (HQ / HKV) * NK + j) * D + d];
        out[(h * NQ + i) * D + d] = x;
      }
    }
}

static double worst(const float* x, const double* want, int n) {
  double most = 0;
  for (int i = 0; i < n; ++i) most = fmax(most, fabs(x[i] - want[i]));
  return most;
}

static undivided_view vq, vk, vv, vo, vl;
static undivided_rows rows;
static undivided_kv keys;
static undivided_outputs out;

static void set_up(void) {
  fill(q, HQ * NQ * D, 0);
  fill(k, HKV * NK * D, 1);
  fill(v, HKV * NK * D, 2);
  fill(dout, HQ * NQ * D, 3);
  vq = view4(q, 1, HQ, NQ, D);
  vk = view4(k, 1, HKV, NK, D);
  vv = view4(v, 1, HKV, NK, D);
  vo = view4(o, 1, HQ, NQ, D);
  vl = view3(lse, 1, HQ, NQ);
  memset(&rows, 0, sizeof rows);
  rows.struct_size = sizeof rows;
  rows.data = &vq;
  memset(&keys, 0, sizeof keys);
  keys.struct_size = sizeof keys;
  keys.k = &vk;
  keys.v = &vv;
  memset(&out, 0, sizeof out);
  out.struct_size = sizeof out;
  out.o = &vo;
  out.lse = &vl;
}

static undivided_options defaults(void) {
  undivided_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  return options;
}

static void one_shot(void) {
  double want[HQ * NQ * D], want_lse[HQ * NQ];
  undivided_options options = defaults();
  options.mask = "k <= q";
  options.align = UNDIVIDED_ALIGN_END;
  textbook(want, want_lse, 0);
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_OK);
  CHECK(worst(o, want, HQ * NQ * D) < 1e-5);
  CHECK(worst(lse, want_lse, HQ * NQ) < 1e-5);

  float slope[HQ] = {0.25f, 0.25f, 0.25f, 0.25f};
  const undivided_view slopes = vector(slope, UNDIVIDED_F32, HQ);
  const undivided_named_view arrays[] = {{"m", &slopes, 0, 0}};
  const undivided_named_value params[] = {{"gain", 0.5}};
  options.score = "param gain: f32 = 1; score + gain * m[head] * (k - q)";
  options.arrays = arrays;
  options.array_count = 1;
  options.params = params;
  options.param_count = 1;
  textbook(want, want_lse, 0.125);
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_OK);
  CHECK(worst(o, want, HQ * NQ * D) < 1e-5);
}

static double loss(const undivided_options* options) {
  double sum = 0;
  CHECK(undivided_attention(&out, &rows, &keys, options) == UNDIVIDED_OK);
  for (int i = 0; i < HQ * NQ * D; ++i) sum += (double)o[i] * dout[i];
  return sum;
}

static void backward(void) {
  float dq[HQ * NQ * D], dk[HKV * NK * D], dv[HKV * NK * D], dm[HQ], dgain[1];
  float slope[HQ] = {0.5f, 0.25f, 0.125f, 0.0625f};
  const undivided_view slopes = vector(slope, UNDIVIDED_F32, HQ);
  const undivided_named_view arrays[] = {{"m", &slopes, 0, 0}};
  const undivided_named_value gain = {"gain", 0.5};
  undivided_options options = defaults();
  options.mask = "k <= q";
  options.score = "param gain: f32 = 1; score + gain * m[head] * (k - q)";
  options.align = UNDIVIDED_ALIGN_END;
  options.arrays = arrays;
  options.array_count = 1;
  options.params = &gain;
  options.param_count = 1;

  undivided_view vdout = view4(dout, 1, HQ, NQ, D), vdq = view4(dq, 1, HQ, NQ, D),
                 vdk = view4(dk, 1, HKV, NK, D), vdv = view4(dv, 1, HKV, NK, D),
                 vdm = vector(dm, UNDIVIDED_F32, HQ), vdgain = vector(dgain, UNDIVIDED_F32, 1);
  undivided_rows rows_dout = rows;
  rows_dout.data = &vdout;
  const undivided_named_view captured[] = {{"m", &vdm, 0, 0}, {"gain", &vdgain, 0, 0}};
  undivided_gradients gradients;
  memset(&gradients, 0, sizeof gradients);
  gradients.struct_size = sizeof gradients;
  gradients.q = &vdq;
  gradients.k = &vdk;
  gradients.v = &vdv;
  gradients.captured = captured;
  gradients.captured_count = 2;
  (void)loss(&options);
  CHECK(undivided_attention_backward(&gradients, &rows_dout, &rows, &keys, &vo, &vl, &options) ==
        UNDIVIDED_OK);
  /* Central differences of the loss, one element of each. */
  struct {
    float *x, gradient;
  } probes[] = {{&q[13], dq[13]}, {&k[21], dk[21]}, {&v[34], dv[34]}, {&slope[2], dm[2]}};
  for (int i = 0; i < 4; ++i) {
    const float at = *probes[i].x, h = 1e-2f;
    *probes[i].x = at + h;
    const double up = loss(&options);
    *probes[i].x = at - h;
    const double down = loss(&options);
    *probes[i].x = at;
    CHECK(fabs((up - down) / (2 * h) - probes[i].gradient) < 2e-3);
  }
  double all = 0;
  for (int h = 0; h < HQ; ++h) all += (double)dm[h] * slope[h];
  CHECK(fabs(all / 0.5 - dgain[0]) < 1e-3); /* both multiply the same term */
}

static void planned(void) {
  double want[HQ * NQ * D], want_lse[HQ * NQ];
  undivided_options options = defaults();
  options.mask = "k <= q";
  options.align = UNDIVIDED_ALIGN_END;
  options.threads = 1;
  undivided_plan* plan = NULL;
  CHECK(undivided_plan_create(&plan, &rows, &keys, &options) == UNDIVIDED_OK);
  CHECK(plan != NULL);
  CHECK(strcmp(undivided_plan_backend(plan), "cpu") == 0);
  CHECK(strlen(undivided_plan_kernel(plan)) > 0);
  CHECK(strstr(undivided_plan_explain(plan), "kernel") != NULL);
  void* room = aligned_alloc(256, (undivided_plan_workspace(plan) + 511) / 256 * 256);
  textbook(want, want_lse, 0);
  for (int run = 0; run < 3; ++run) {
    memset(o, 0, sizeof o);
    CHECK(undivided_plan_run(plan, &out, &rows, &keys, NULL, room) == UNDIVIDED_OK);
    CHECK(worst(o, want, HQ * NQ * D) < 1e-5);
    CHECK(worst(lse, want_lse, HQ * NQ) < 1e-5);
  }
  /* A growing cache: more keys, the same plan. */
  float more[HKV * 8 * D];
  fill(more, HKV * 8 * D, 1);
  undivided_view v8 = view4(more, 1, HKV, 8, D);
  undivided_kv grown = keys;
  grown.k = grown.v = &v8;
  CHECK(undivided_plan_run(plan, &out, &rows, &grown, NULL, room) == UNDIVIDED_OK);
  /* Too many: refused, nothing is written. */
  float too_many[HKV * 9 * D] = {0};
  undivided_view v9 = view4(too_many, 1, HKV, 9, D);
  grown.k = grown.v = &v9;
  CHECK(undivided_plan_run(plan, &out, &rows, &grown, NULL, room) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "larger bounds") != NULL);
  undivided_plan_free(plan);
  undivided_plan_free(NULL);
  free(room);
}

static void paged(void) {
  /* The keys of one sequence in pages of 4 tokens, in reverse order. */
  float pool_k[2 * HKV * 4 * D], pool_v[2 * HKV * 4 * D];
  int32_t table[2] = {1, 0}, length[1] = {NK};
  double want[HQ * NQ * D], want_lse[HQ * NQ];
  for (int j = 0; j < NK; ++j)
    for (int h = 0; h < HKV; ++h)
      for (int d = 0; d < D; ++d) {
        const int at = ((table[j / 4] * HKV + h) * 4 + j % 4) * D + d;
        pool_k[at] = k[(h * NK + j) * D + d];
        pool_v[at] = v[(h * NK + j) * D + d];
      }
  undivided_view pk = view4(pool_k, 2, HKV, 4, D), pv = view4(pool_v, 2, HKV, 4, D);
  undivided_view lengths = vector(length, UNDIVIDED_I32, 1);
  undivided_view pages = {sizeof pages, table, UNDIVIDED_I32, 0, 0, 2, {1, 2, 0, 0}, {0, 0, 0, 0}};
  undivided_kv kv = keys;
  kv.kind = UNDIVIDED_KV_PAGED;
  kv.k = &pk;
  kv.v = &pv;
  kv.page_table = &pages;
  kv.lengths = &lengths;
  undivided_options options = defaults();
  options.mask = "k <= q";
  options.align = UNDIVIDED_ALIGN_END;
  textbook(want, want_lse, 0);
  CHECK(undivided_attention(&out, &rows, &kv, &options) == UNDIVIDED_OK);
  CHECK(worst(o, want, HQ * NQ * D) < 1e-5);
}

/* Claim: keys in two halves, merged and finished with a sink, are the whole. */
static void merged(void) {
  enum { FIRST = 3 };
  float oa[HQ * NQ * D], ob[HQ * NQ * D], la[HQ * NQ], lb[HQ * NQ], om[HQ * NQ * D], lm[HQ * NQ];
  float half_o[HQ * NQ * D], half_l[HQ * NQ], sink[HQ] = {0.5f, -1, 2, 0};
  undivided_view voa = view4(oa, 1, HQ, NQ, D), vob = view4(ob, 1, HQ, NQ, D),
                 vla = view3(la, 1, HQ, NQ), vlb = view3(lb, 1, HQ, NQ),
                 vom = view4(om, 1, HQ, NQ, D), vlm = view3(lm, 1, HQ, NQ),
                 vho = view4(half_o, 1, HQ, NQ, D), vhl = view3(half_l, 1, HQ, NQ),
                 vsink = vector(sink, UNDIVIDED_F32, HQ);
  const undivided_outputs a = {sizeof a, &voa, &vla, NULL, NULL},
                          b = {sizeof b, &vob, &vlb, NULL, NULL},
                          m = {sizeof m, &vom, &vlm, NULL, NULL},
                          half = {sizeof half, &vho, &vhl, NULL, NULL};
  undivided_options options = defaults();
  options.sink = &vsink;
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_OK); /* the whole */
  options = defaults();
  options.partial = 1;
  undivided_view first_k = vk, first_v = vv, rest_k = vk, rest_v = vv;
  const int64_t stride[4] = {HKV * NK * D, NK * D, D, 1};
  undivided_view* parts[] = {&first_k, &first_v, &rest_k, &rest_v};
  for (int i = 0; i < 4; ++i) {
    memcpy(parts[i]->stride, stride, sizeof stride);
    parts[i]->shape[2] = i < 2 ? FIRST : NK - FIRST;
    if (i > 1) parts[i]->data = (float*)parts[i]->data + FIRST * D;
  }
  undivided_kv kv = keys;
  kv.k = &first_k;
  kv.v = &first_v;
  CHECK(undivided_attention(&a, &rows, &kv, &options) == UNDIVIDED_OK);
  kv.k = &rest_k;
  kv.v = &rest_v;
  CHECK(undivided_attention(&b, &rows, &kv, &options) == UNDIVIDED_OK);
  CHECK(undivided_merge(&half, &a, &b, 0, NULL) == UNDIVIDED_OK);
  options = defaults();
  options.sink = &vsink;
  CHECK(undivided_finish(&m, &half, 0, &options) == UNDIVIDED_OK);
  for (int i = 0; i < HQ * NQ * D; ++i) CHECK(fabsf(om[i] - o[i]) < 1e-5f);
  for (int i = 0; i < HQ * NQ; ++i) CHECK(fabsf(lm[i] - lse[i]) < 1e-5f);

  CHECK(undivided_merge(&m, &a, NULL, 0, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "b is null") != NULL);
  CHECK(undivided_merge(&m, &a, &b, 0, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "undivided_finish") != NULL);
  vlm.shape[2] = NQ - 1;
  CHECK(undivided_merge(&m, &a, &b, 0, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "the merged O is") != NULL);
}

/* Claim: a plan with the classes of its mask's blocks gives the same answer, and knows its counts.
 */
static void with_mask_plan(void) {
  double want[HQ * NQ * D], want_lse[HQ * NQ];
  undivided_options options = defaults();
  options.mask = "k <= q || k < 0";
  options.align = UNDIVIDED_ALIGN_END;
  undivided_mask_plan* blocks = NULL;
  CHECK(undivided_mask_plan_create(&blocks, &rows, &keys, &options) == UNDIVIDED_OK);
  undivided_mask_summary summary = {sizeof summary, 0, 0, 0, 0, 0, 0};
  CHECK(undivided_mask_plan_summary(blocks, &summary) == UNDIVIDED_OK);
  CHECK(summary.block == 64 && summary.partial == HQ && summary.empty == 0 && summary.full == 0);
  CHECK(summary.kept_pairs == HQ * (3 + 4 + 5 + 6 + 7) && summary.rows_without_key == 0);
  options.mask_plan = blocks;
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "undivided_plan_create") != NULL);
  undivided_plan* plan = NULL;
  CHECK(undivided_plan_create(&plan, &rows, &keys, &options) == UNDIVIDED_OK);
  void* room = aligned_alloc(256, (undivided_plan_workspace(plan) + 511) / 256 * 256);
  textbook(want, want_lse, 0);
  memset(o, 0, sizeof o);
  CHECK(undivided_plan_run(plan, &out, &rows, &keys, NULL, room) == UNDIVIDED_OK);
  CHECK(worst(o, want, HQ * NQ * D) < 1e-5);
  /* Claim: Partial blocks may ask the program instead; a plan and its classes must agree on it. */
  undivided_plan_free(plan);
  options.inside = UNDIVIDED_INSIDE_PROGRAM;
  CHECK(undivided_plan_create(&plan, &rows, &keys, &options) == UNDIVIDED_OK);
  CHECK(undivided_plan_run(plan, &out, &rows, &keys, NULL, room) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "decides Partial blocks by bits") != NULL);
  undivided_plan_free(plan);
  undivided_mask_plan* asked = NULL;
  options.mask_plan = NULL;
  CHECK(undivided_mask_plan_create(&asked, &rows, &keys, &options) == UNDIVIDED_OK);
  options.mask_plan = asked;
  CHECK(undivided_plan_create(&plan, &rows, &keys, &options) == UNDIVIDED_OK);
  CHECK(strstr(undivided_plan_kernel(plan), "plan.inside") != NULL);
  memset(o, 0, sizeof o);
  CHECK(undivided_plan_run(plan, &out, &rows, &keys, NULL, room) == UNDIVIDED_OK);
  CHECK(worst(o, want, HQ * NQ * D) < 1e-5);
  options.mask_plan = NULL;
  options.inside = UNDIVIDED_INSIDE_PROGRAM + 1;
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "inside is 3; 0 to 2 is allowed") != NULL);
  options.inside = UNDIVIDED_INSIDE_AUTOMATIC;
  undivided_mask_plan_free(asked);
  undivided_plan_free(plan);
  options.mask_plan = NULL;
  CHECK(undivided_plan_create(&plan, &rows, &keys, &options) == UNDIVIDED_OK);
  options.mask_plan = blocks;
  CHECK(undivided_plan_run(plan, &out, &rows, &keys, &options, room) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "made without one") != NULL);
  undivided_plan_free(plan);
  undivided_mask_plan_free(blocks);
  undivided_mask_plan_free(NULL);
  free(room);
}

static void refusals(void) {
  undivided_options options = defaults();
  options.mask = "k <= ";
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "parse") != NULL);
  options.mask = "k <= q";
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "align") != NULL);
  options.align = 7;
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "align is 7; 0 to 2 is allowed") != NULL);
  options = defaults();
  options.struct_size = 8;
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "struct_size is 8") != NULL);
  CHECK(undivided_attention(NULL, &rows, &keys, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(undivided_attention(&out, NULL, &keys, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(undivided_attention(&out, &rows, NULL, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(undivided_plan_create(NULL, &rows, &keys, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(undivided_plan_run(NULL, &out, &rows, &keys, NULL, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  options = defaults();
  options.backend = UNDIVIDED_BACKEND_CUDA; /* the data is on the host */
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_UNSUPPORTED);
  options = defaults();
  options.max_logit = 1;
  CHECK(undivided_attention(&out, &rows, &keys, &options) == UNDIVIDED_INVALID_ARGUMENT);
  undivided_view bad = vq;
  bad.rank = 9;
  undivided_rows bad_rows = rows;
  bad_rows.data = &bad;
  CHECK(undivided_attention(&out, &bad_rows, &keys, NULL) == UNDIVIDED_INVALID_ARGUMENT);
  CHECK(strstr(undivided_last_error(), "rank is 9; 1 to 4 is allowed") != NULL);
}

int main(void) {
  set_up();
  one_shot();
  backward();
  planned();
  paged();
  merged();
  with_mask_plan();
  refusals();
  CHECK(strlen(undivided_version()) > 0);
  printf(failures ? "%d claims failed\n" : "all claims hold\n", failures);
  return failures != 0;
}
