/* SPDX-License-Identifier: Apache-2.0 */
/* The C door: attention for engines in any language. Nothing throws across it.
 *
 * Every struct begins with struct_size = sizeof(struct); zero means "not given" or "the default"
 * everywhere, so `undivided_options o = {sizeof o};` is a full set of defaults. Views are borrowed.
 * Masks and scores are canonical text, for example "k <= q && q - k < window".
 */
#ifndef UNDIVIDED_C_H
#define UNDIVIDED_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum undivided_status {
  UNDIVIDED_OK = 0,
  UNDIVIDED_INVALID_ARGUMENT = 1, /* the request contradicts itself or the data */
  UNDIVIDED_UNSUPPORTED = 2,      /* legal, but no backend can do it */
  UNDIVIDED_OUT_OF_MEMORY = 3,
  UNDIVIDED_IO = 4,
  UNDIVIDED_DRIVER = 5,  /* an operating system, CUDA driver or compiler call failed */
  UNDIVIDED_INTERNAL = 6 /* a defect of the library */
} undivided_status;

/* What went wrong in the last call of this thread that did not return UNDIVIDED_OK. */
const char* undivided_last_error(void);
const char* undivided_version(void);

typedef enum undivided_dtype {
  UNDIVIDED_DTYPE_DEFAULT = 0,
  UNDIVIDED_F64,
  UNDIVIDED_F32,
  UNDIVIDED_F16,
  UNDIVIDED_BF16,
  UNDIVIDED_I32,
  UNDIVIDED_I64,
  UNDIVIDED_BOOL
} undivided_dtype;

typedef struct undivided_view {
  size_t struct_size;
  void* data;
  int32_t dtype; /* undivided_dtype */
  int32_t cuda;  /* 0: host memory, 1: memory of CUDA device `device` */
  int32_t device;
  int32_t rank; /* 1 to 4 */
  int64_t shape[4];
  int64_t stride[4]; /* in elements; all zero: dense row-major */
} undivided_view;

/* Q, O and their gradients: dense [batch, head, token, dim] or [head, token, dim]; ragged: packed
 * [total, head, dim] with offsets [batch + 1]. */
typedef struct undivided_rows {
  size_t struct_size;
  const undivided_view* data;
  const undivided_view* offsets; /* i32 or i64; given: ragged */
  const undivided_view* lengths; /* dense only, optional: [batch] */
  int64_t max_length;            /* ragged on a device: an upper bound */
} undivided_rows;

typedef enum undivided_kv_kind {
  UNDIVIDED_KV_DENSE = 0,
  UNDIVIDED_KV_RAGGED = 1,
  UNDIVIDED_KV_PAGED = 2
} undivided_kv_kind;

/* Keys and values: dense like Q, ragged [total, kv head, dim], or paged [page, kv head, token, dim]
 * with page_table [batch, max pages] and lengths [batch]. */
typedef struct undivided_kv {
  size_t struct_size;
  int32_t kind; /* undivided_kv_kind */
  const undivided_view* k;
  const undivided_view* v;
  const undivided_view* offsets;
  const undivided_view* lengths;
  const undivided_view* page_table;
  const undivided_view* prefix_table; /* paged, optional: the first pages of every sequence */
  int64_t max_length;
} undivided_kv;

/* An array that a text mentions, or where its gradient goes. */
typedef struct undivided_named_view {
  const char* name;
  const undivided_view* view;
  int64_t low, high; /* integer arrays on a device: the range of their values */
} undivided_named_view;

typedef struct undivided_named_value {
  const char* name;
  double value;
} undivided_named_value;

typedef enum undivided_align {
  UNDIVIDED_ALIGN_UNSAID = 0, /* enough if no position is read or q_len is k_len */
  UNDIVIDED_ALIGN_START = 1,  /* the first query meets the first key */
  UNDIVIDED_ALIGN_END = 2     /* the last query meets the last key */
} undivided_align;

typedef enum undivided_determinism {
  UNDIVIDED_FAST = 0,
  UNDIVIDED_REPRODUCIBLE = 1,
  UNDIVIDED_INVARIANT = 2
} undivided_determinism;

/* What decides the pairs of a block that the mask keeps in part, where a mask plan is used: bits of
 * the plan, or the mask's program. Automatic takes the program for masks by key columns. */
typedef enum undivided_inside {
  UNDIVIDED_INSIDE_AUTOMATIC = 0,
  UNDIVIDED_INSIDE_BITS = 1,
  UNDIVIDED_INSIDE_PROGRAM = 2
} undivided_inside;

typedef enum undivided_backend {
  UNDIVIDED_BACKEND_AUTO = 0,
  UNDIVIDED_BACKEND_REFERENCE = 1,
  UNDIVIDED_BACKEND_CPU = 2,
  UNDIVIDED_BACKEND_CUDA = 3
} undivided_backend;

typedef struct undivided_options {
  size_t struct_size;
  const char* mask;  /* null: every pair takes part */
  const char* score; /* null: the score itself */
  const undivided_named_view* arrays;
  size_t array_count;
  const undivided_named_value* params;
  size_t param_count;
  int32_t align; /* undivided_align */
  const undivided_view* q_origin;
  const undivided_view* k_origin; /* explicit origins, i32 or i64 [batch] */
  double scale;                   /* 0: 1 / sqrt(dim of Q) */
  const undivided_view* sink;     /* f32 [query heads] */
  double dropout;
  uint64_t seed;
  int32_t determinism;
  int32_t out_dtype;
  int32_t partial;   /* not 0: float32 O and LSE without the sink, to be merged */
  int32_t max_logit; /* not 0: also the largest score, [batch, query heads] */
  int32_t key_mass;  /* not 0: also the sum of weights of each key */
  int32_t inside;    /* undivided_inside */
  int32_t backend;
  int32_t compile_never; /* not 0: only kernels that are already compiled */
  int32_t threads;       /* 0: all cores */
  void* stream;          /* CUstream */
  /* Plans only: classes of the mask's blocks, made for lengths and origins of the data. */
  const struct undivided_mask_plan* mask_plan;
} undivided_options;

/* Where results go; null ones are not written. LSE is [batch, head, token], or [head, total] for
 * ragged rows. max_logit and key_mass must be given where the options ask for them. */
typedef struct undivided_outputs {
  size_t struct_size;
  const undivided_view* o;
  const undivided_view* lse;
  const undivided_view* max_logit;
  const undivided_view* key_mass;
} undivided_outputs;

/* Where gradients go; null ones are not computed. Arrays by name, float32, shapes of the arrays;
 * float parameters by name, float32 [1] in host memory. */
typedef struct undivided_gradients {
  size_t struct_size;
  const undivided_view* q;
  const undivided_view* k;
  const undivided_view* v;
  const undivided_view* sink;
  const undivided_named_view* captured;
  size_t captured_count;
  const undivided_view* dlse; /* input: the gradient of LSE, or null */
} undivided_gradients;

/* O = softmax(mask(score(scale * Q K^T))) V, written where `out` says. */
undivided_status undivided_attention(const undivided_outputs* out,
                                     const undivided_rows* q,
                                     const undivided_kv* kv,
                                     const undivided_options* options);

/* Gradients; o, lse and options are those of the forward. */
undivided_status undivided_attention_backward(const undivided_gradients* out,
                                              const undivided_rows* dout,
                                              const undivided_rows* q,
                                              const undivided_kv* kv,
                                              const undivided_view* o,
                                              const undivided_view* lse,
                                              const undivided_options* options);

/* Two partial results over disjoint keys (options.partial) become the one over their union. O is
 * float32 in `a` and `b` and float32, f16 or bf16 in `out`; all three have one shape. ragged: O is
 * [total, head, dim] and LSE [head, total]. Reads backend, threads and stream of `options`. */
undivided_status undivided_merge(const undivided_outputs* out,
                                 const undivided_outputs* a,
                                 const undivided_outputs* b,
                                 int32_t ragged,
                                 const undivided_options* options);
/* Adds options.sink, once, at the end (none: a conversion of type). */
undivided_status undivided_finish(const undivided_outputs* out,
                                  const undivided_outputs* partial,
                                  int32_t ragged,
                                  const undivided_options* options);

/* The exact class of every 64 x 64 block of a mask, to be given to plans as options.mask_plan: for
 * a mask that is not a band it saves the work on blocks that keep nothing. */
typedef struct undivided_mask_plan undivided_mask_plan;
typedef struct undivided_mask_summary {
  size_t struct_size;
  int64_t block;                /* 64 */
  int64_t empty, partial, full; /* blocks, over all batches and heads */
  int64_t kept_pairs, rows_without_key;
} undivided_mask_summary;
undivided_status undivided_mask_plan_create(undivided_mask_plan** mask_plan,
                                            const undivided_rows* q,
                                            const undivided_kv* kv,
                                            const undivided_options* options);
undivided_status undivided_mask_plan_summary(const undivided_mask_plan* mask_plan,
                                             undivided_mask_summary* summary);
void undivided_mask_plan_free(undivided_mask_plan* mask_plan);

/* A plan fixes which kernel runs a class of forward problems. `q` and `kv` are an example: their
 * data pointers may be null; batch, lengths and pages of later runs may grow to the next power of
 * two (with arrays: not at all, because they are proved for the example). */
typedef struct undivided_plan undivided_plan;
undivided_status undivided_plan_create(undivided_plan** plan,
                                       const undivided_rows* q,
                                       const undivided_kv* kv,
                                       const undivided_options* options);
/* Bytes that a run needs, on the device of the data, 256-byte aligned. */
size_t undivided_plan_workspace(const undivided_plan* plan);
/* What runs, why, and what was refused. Lives as long as the plan. */
const char* undivided_plan_explain(const undivided_plan* plan);
const char* undivided_plan_kernel(const undivided_plan* plan);
const char* undivided_plan_backend(const undivided_plan* plan);
/* No allocation, no synchronisation, no compilation; from any thread, with a workspace each. Mask,
 * score, arrays, scale, dropout, and whether there is a sink or an origin are those of the plan;
 * sink, origins, mask plan, seed and stream come from `options` (null: those of the plan). On CUDA,
 * offsets, lengths, tables and origins are device memory. */
undivided_status undivided_plan_run(const undivided_plan* plan,
                                    const undivided_outputs* out,
                                    const undivided_rows* q,
                                    const undivided_kv* kv,
                                    const undivided_options* options,
                                    void* workspace);
void undivided_plan_free(undivided_plan* plan);

#ifdef __cplusplus
}
#endif
#endif
