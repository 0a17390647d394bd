/* SPDX-License-Identifier: Apache-2.0 */
/* The same from C. */
#include <stdio.h>
#include <undivided/c.h>

int main(void) {
  float x[2 * 5 * 8] = {0}, o[2 * 5 * 8];
  const undivided_view view = {sizeof view, x, UNDIVIDED_F32, 0, 0, 4, {1, 2, 5, 8}, {0, 0, 0, 0}};
  undivided_view result = view;
  undivided_rows rows = {sizeof rows, &view, NULL, NULL, 0};
  undivided_kv keys = {sizeof keys, UNDIVIDED_KV_DENSE, &view, &view, NULL, NULL, NULL, NULL, 0};
  undivided_outputs out = {sizeof out, &result, NULL, NULL, NULL};
  result.data = o;
  if (undivided_attention(&out, &rows, &keys, NULL) != UNDIVIDED_OK) {
    fprintf(stderr, "%s\n", undivided_last_error());
    return 1;
  }
  return o[0] == 0 ? 0 : 1;
}
