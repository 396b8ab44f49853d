// SPDX-License-Identifier: GPL-2.0-or-later
// Writes rows and the bare host's answers for a guest to compare itself with (tests/guest/baremetal/float.c):
// the number of blocks and of rows in each as two words, then the rows, block by block.
//
//   float_export ROWS FILE [SEED]
#include <stdio.h>
#include <stdlib.h>

#include "float_host.h"

int main(int argc, char** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: float_export ROWS FILE [SEED]\n");
        return 2;
    }
    long count = atol(argv[1]);
    uint64_t header[2] = {float_block_count, (uint64_t)count};
    Row* rows = calloc((size_t)count, sizeof(Row));  // 16-byte aligned, as MOVAPS wants
    FILE* file = fopen(argv[2], "wb");
    if (argc > 3) float_seed(strtoull(argv[3], NULL, 0));
    if (!rows || !file || fwrite(header, sizeof(header), 1, file) != 1) return 1;
    for (size_t b = 0; b < float_block_count; b++) {
        float_fill_rows(&float_blocks[b], rows, count);
        float_run_on_host(&float_blocks[b], rows, count);
        if (fwrite(rows, sizeof(Row), (size_t)count, file) != (size_t)count) return 1;
    }
    free(rows);
    return fclose(file) != 0;
}
