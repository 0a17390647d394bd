/* SPDX-License-Identifier: Apache-2.0 */
/* An engine's loop in C: plan once, then run a step for each new token without any allocation. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "undivided/c.h"

enum { HEADS = 4, DIM = 32, CAPACITY = 64 };
static float q[HEADS * DIM], k[HEADS * CAPACITY * DIM], v[HEADS * CAPACITY * DIM], o[HEADS * DIM];

static int failed(undivided_status status) {
  if (status != UNDIVIDED_OK) fprintf(stderr, "error %d: %s\n", status, undivided_last_error());
  return status != UNDIVIDED_OK;
}

int main(void) {
  int32_t length = CAPACITY;
  /* The cache is [batch, head, token, dim] with room for CAPACITY tokens; `length` says how many
   * are there. */
  const undivided_view vq = {sizeof vq, q, UNDIVIDED_F32, 0, 0, 4, {1, HEADS, 1, DIM}, {0}};
  const undivided_view vk = {sizeof vk, k, UNDIVIDED_F32, 0, 0, 4, {1, HEADS, CAPACITY, DIM}, {0}};
  const undivided_view vv = {sizeof vv, v, UNDIVIDED_F32, 0, 0, 4, {1, HEADS, CAPACITY, DIM}, {0}};
  const undivided_view vo = {sizeof vo, o, UNDIVIDED_F32, 0, 0, 4, {1, HEADS, 1, DIM}, {0}};
  const undivided_view vn = {sizeof vn, &length, UNDIVIDED_I32, 0, 0, 1, {1}, {0}};
  const undivided_rows rows = {sizeof rows, &vq, NULL, NULL, 0};
  const undivided_outputs out = {sizeof out, &vo, NULL, NULL, NULL};
  undivided_kv keys = {sizeof keys, UNDIVIDED_KV_DENSE, &vk, &vv, NULL, NULL, NULL, NULL, 0};
  const undivided_named_value width = {"width", 24};
  undivided_options options = {0};
  keys.lengths = &vn;
  options.struct_size = sizeof options;
  options.mask = "param width: i32 = 16; k <= q && q - k < width";
  options.params = &width;
  options.param_count = 1;
  options.align = UNDIVIDED_ALIGN_END;
  options.threads = 1;

  undivided_plan* plan;
  if (failed(undivided_plan_create(&plan, &rows, &keys, &options))) return 1;
  printf("%s", undivided_plan_explain(plan));
  void* workspace = malloc(undivided_plan_workspace(plan) + 1);

  for (length = 0; length < CAPACITY;) {
    for (int h = 0; h < HEADS; ++h)
      for (int d = 0; d < DIM; ++d) { /* the new token's query, key and value */
        q[h * DIM + d] = sinf(0.3f * (float)(length + h + d));
        k[(h * CAPACITY + length) * DIM + d] = sinf(0.2f * (float)(length * d + h));
        v[(h * CAPACITY + length) * DIM + d] = (float)length;
      }
    ++length;
    if (failed(undivided_plan_run(plan, &out, &rows, &keys, &options, workspace))) return 1;
  }
  /* V holds token numbers, so O is the mean token that was looked at: one of the last 24. */
  printf("after %d steps, head 0 looks at token %.2f on average\n", (int)length, o[0]);
  const int good = o[0] >= CAPACITY - 24 && o[0] < CAPACITY;
  free(workspace);
  undivided_plan_free(plan);
  return good ? 0 : 1;
}
