/* SPDX-License-Identifier: Apache-2.0
 * Feeds damaged copies of a model to the virtual NPU, in one process that a sanitizer watches.
 * usage: virtual_fuzz MODEL ROUNDS SEED; prints how many copies were taken and how many refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rknn_virtual.h"

int rknn_init(rknn_context *, void *, uint32_t, uint32_t, rknn_init_extend *);
int rknn_destroy(rknn_context);
int rknn_query(rknn_context, int, void *, uint32_t);
int rknn_inputs_set(rknn_context, uint32_t, rknn_input *);
int rknn_run(rknn_context, rknn_run_extend *);
int rknn_outputs_get(rknn_context, uint32_t, rknn_output *, rknn_output_extend *);
int rknn_outputs_release(rknn_context, uint32_t, rknn_output *);
int rknn_set_input_shapes(rknn_context, uint32_t, rknn_tensor_attr *);

static unsigned taken, refused;
static uint64_t state;
static rknn_input_range range;

static uint32_t dice(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

/* Uses a context as a program would: all questions, every shape set, and a run where the tensors are small. */
static void use(rknn_context c) {
    rknn_input_output_num n;
    rknn_tensor_attr a, shapes[256];
    rknn_input in[256];
    rknn_output out[256];
    char text[1024];
    uint64_t total = 0;
    if (rknn_query(c, QUERY_IN_OUT_NUM, &n, sizeof n) != 0 || n.n_input > 256 || n.n_output > 256) abort();
    rknn_query(c, QUERY_CUSTOM_STRING, text, sizeof text);
    rknn_query(c, QUERY_MEM_SIZE, text, sizeof text);
    for (uint32_t i = 0; i < n.n_input + n.n_output; i++) {
        static const int of_input[] = {1, 8, 10, 14, 16}, of_output[] = {2, 9, 11, 15, 17};
        for (int q = 0; q < 5; q++) {
            a.index = i < n.n_input ? i : i - n.n_input;
            if (rknn_query(c, i < n.n_input ? of_input[q] : of_output[q], &a, sizeof a) != 0) abort();
            if (a.n_dims == 0 || a.n_dims > 16 || !memchr(a.name, 0, sizeof a.name)) abort();
            total += a.size_with_stride + (uint64_t)a.n_elems * 4;
        }
    }
    for (uint32_t set = 0; set < 512; set++) {
        uint32_t i;
        for (i = 0; i < n.n_input; i++) {
            range.index = i;
            if (rknn_query(c, QUERY_INPUT_DYNAMIC_RANGE, &range, sizeof range) != 0 || set >= range.shape_number) break;
            shapes[i] = (rknn_tensor_attr){.index = i, .n_dims = range.n_dims, .fmt = range.fmt};
            memcpy(shapes[i].dims, range.dyn_range[set], sizeof shapes[i].dims);
        }
        if (i < n.n_input) break;
        if (rknn_set_input_shapes(c, n.n_input, shapes) != 0) abort();
    }
    for (uint32_t i = 0; i < n.n_input + n.n_output; i++) { /* of the set that is current now */
        a.index = i < n.n_input ? i : i - n.n_input;
        rknn_query(c, i < n.n_input ? QUERY_CURRENT_INPUT_ATTR : QUERY_CURRENT_OUTPUT_ATTR, &a, sizeof a);
        total += (uint64_t)a.n_elems * 4;
    }
    if (total > 1 << 20) return;
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    for (uint32_t i = 0; i < n.n_input; i++) {
        a.index = i;
        rknn_query(c, QUERY_CURRENT_INPUT_ATTR, &a, sizeof a);
        in[i] = (rknn_input){.index = i, .buf = calloc(a.n_elems, 4), .size = a.n_elems * 4, .fmt = (int)(i & 1)};
    }
    if (rknn_inputs_set(c, n.n_input, in) != 0 || rknn_run(c, NULL) != 0) abort();
    for (uint32_t i = 0; i < n.n_output; i++) out[i] = (rknn_output){.index = i, .want_float = i & 1};
    if (rknn_outputs_get(c, n.n_output, out, NULL) != 0 || rknn_outputs_release(c, n.n_output, out) != 0) abort();
    for (uint32_t i = 0; i < n.n_input; i++) free(in[i].buf);
}

static void try(const unsigned char *bytes, size_t size) {
    rknn_context c;
    unsigned char *exact = malloc(size ? size : 1); /* so that reading past the end is noticed */
    memcpy(exact, bytes, size);
    if (size == 0 || rknn_init(&c, exact, (uint32_t)size, 0, NULL) != 0) refused++;
    else {
        taken++;
        use(c);
        if (rknn_destroy(c) != 0) abort();
    }
    free(exact);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    FILE *f = fopen(argv[1], "rb");
    if (!f) return 2;
    static unsigned char whole[1 << 20], copy[1 << 20];
    size_t size = fread(whole, 1, sizeof whole, f);
    fclose(f);
    state = strtoull(argv[3], NULL, 10);
    try(whole, size);
    if (taken != 1) return 3;
    for (size_t cut = 0; cut < size; cut += 64) try(whole, cut);
    if (taken != 1) return 4; /* no truncated file may be taken */
    for (long round = strtol(argv[2], NULL, 10); round > 0; round--) {
        memcpy(copy, whole, size);
        for (uint32_t hits = 1 + dice(6); hits > 0; hits--) {
            static const uint32_t numbers[] = {0, 1, 4, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffc, 0x10000};
            uint32_t at = dice((uint32_t)size), value = numbers[dice(8)];
            /* Half of the hits where tables and texts are; what comes before are weights, mostly. */
            if (size > 8192 && dice(2)) at = (uint32_t)size - 1 - dice(8192);
            if (dice(2)) copy[at] = (unsigned char)dice(256);
            else if (at + 4 <= size) memcpy(copy + at, &value, 4);
        }
        try(copy, size);
    }
    rknn_virtual_counters n;
    rknn_virtual_get_counters(&n);
    if (n.contexts || n.models || n.weight_bytes || n.mems || n.outputs) return 5;
    printf("%u taken, %u refused\n", taken, refused);
    return 0;
}
