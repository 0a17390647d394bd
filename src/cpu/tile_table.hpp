// SPDX-License-Identifier: Apache-2.0
// Closes the tiles of one ISA: its row of the table. Included once, inside the namespace of an ISA.

extern const Kernels kernels;
const Kernels kernels = {
    isa_name,
    W,
    lanes,
    copy_rows_tile,
    pack_tile,
    pack_words_tile,
    pack_block_rows,
    pack_block_words,
    unpack_tile,
    store_row_tile,
    {scores_tile<FloatDot>, accumulate_tile<FloatDot>},
    isa_dots,
    softmax_tile,
    mask_band_tile,
    mask_bits_tile,
    drop_tile,
    execute_code,
    read_register,
    mask_by_register,
    multiply_by_register,
    weights_tile,
    score_gradient_tile,
    accumulate_keys_tile<FloatDot, lanes>,
    sum_lanes_tile,
    dot_row,
    exp2_array,
    fma_rounds,
    read_all,
};
