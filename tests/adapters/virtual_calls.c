/* SPDX-License-Identifier: Apache-2.0
 * Calls the virtual NPU as a program full of mistakes would, on one thread or several, watched by a sanitizer: contexts
 * that are destroyed or were never made, memory of others, buffers that are too small, calls in any order.
 * usage: virtual_calls MODEL STEPS SEED THREADS; exit code 0 where every answer was one that is documented. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rknn_virtual.h"

int rknn_init(rknn_context *, void *, uint32_t, uint32_t, rknn_init_extend *);
int rknn_dup_context(rknn_context *, rknn_context *);
int rknn_destroy(rknn_context);
int rknn_query(rknn_context, int, void *, uint32_t);
int rknn_set_core_mask(rknn_context, int);
int rknn_set_batch_core_num(rknn_context, int);
int rknn_inputs_set(rknn_context, uint32_t, rknn_input *);
int rknn_run(rknn_context, rknn_run_extend *);
int rknn_wait(rknn_context, rknn_run_extend *);
int rknn_outputs_get(rknn_context, uint32_t, rknn_output *, rknn_output_extend *);
int rknn_outputs_release(rknn_context, uint32_t, rknn_output *);
int rknn_set_input_shapes(rknn_context, uint32_t, rknn_tensor_attr *);
int rknn_register_custom_ops(rknn_context, void *, uint32_t);
int rknn_set_io_mem(rknn_context, rknn_tensor_mem *, rknn_tensor_attr *);
int rknn_set_weight_mem(rknn_context, rknn_tensor_mem *);
int rknn_set_internal_mem(rknn_context, rknn_tensor_mem *);
int rknn_mem_sync(rknn_context, rknn_tensor_mem *, int);
int rknn_destroy_mem(rknn_context, rknn_tensor_mem *);
rknn_tensor_mem *rknn_create_mem(rknn_context, uint32_t);
rknn_tensor_mem *rknn_create_mem_from_fd(rknn_context, int32_t, void *, uint32_t, int32_t);

enum { CONTEXTS = 24, MEMORIES = 16, ROOM = 1 << 16 };

static unsigned char model[1 << 20];
static size_t size;
/* Shared by the threads: a handle may be destroyed by one while another uses it. */
static _Atomic(rknn_context) contexts[CONTEXTS];
static atomic_uint wrong;
static unsigned steps;
static bool alone; /* memory of this program's own is not shared between threads */

typedef struct {
    uint64_t state;
    pthread_t id;
    rknn_tensor_mem *memories[MEMORIES]; /* may be gone with their context: handed back, never read */
    unsigned char *room;
} thread;

static uint32_t dice(thread *t, uint32_t n) {
    t->state = t->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(t->state >> 33) % n;
}

/* Mostly one that was made, perhaps destroyed since; else anything. */
static rknn_context any(thread *t) {
    if (dice(t, 20)) return contexts[dice(t, CONTEXTS)];
    static const rknn_context odd[] = {0, 1, 0xfff, 0x1000, 0x1001, ~UINT64_C(0), UINT64_C(1) << 63, 4097 << 12 | 7};
    return odd[dice(t, 8)];
}

static void expect(int code, const char *call) {
    if (code <= 0 && code >= -13) return;
    fprintf(stderr, "%s answered %d\n", call, code);
    wrong++;
}
#define CALL(f, ...) expect(f(__VA_ARGS__), #f)

/* Of a handle that leaves the list: it must go, but not while another thread uses it. */
static void finish(rknn_context c) {
    int code;
    while ((code = rknn_destroy(c)) == -1) sched_yield();
    expect(code, "rknn_destroy");
}

static void step(thread *t) {
    rknn_context c = any(t), made = 0;
    rknn_input in[4];
    rknn_output out[4];
    rknn_tensor_attr a = {.index = dice(t, 4)};
    rknn_tensor_mem **m = &t->memories[dice(t, MEMORIES)];
    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    uint32_t n = dice(t, 4);
    switch (dice(t, 20)) {
    case 0:
        if (rknn_init(&made, dice(t, 9) ? model : NULL, (uint32_t)(dice(t, 5) ? size : dice(t, (uint32_t)size) + 1), 0, NULL) == 0) {
            rknn_context old = atomic_exchange(&contexts[dice(t, CONTEXTS)], made);
            finish(old);
        }
        break;
    case 1:
        if (rknn_dup_context(&c, dice(t, 9) ? &made : NULL) == 0) {
            rknn_context old = atomic_exchange(&contexts[dice(t, CONTEXTS)], made);
            finish(old);
        }
        break;
    case 2: CALL(rknn_destroy, c); break; /* the handle stays in the list, out of date */
    case 3: CALL(rknn_query, c, (int)dice(t, 20) - 1, dice(t, 9) ? t->room : NULL, dice(t, 5) ? ROOM : dice(t, 400)); break;
    case 4: CALL(rknn_set_core_mask, c, (int)dice(t, 12)); break;
    case 5: CALL(rknn_set_batch_core_num, c, (int)dice(t, 6) - 1); break;
    case 6: case 7: case 8: case 9:
        for (uint32_t i = 0; i < 4; i++)
            in[i] = (rknn_input){.index = dice(t, 6) ? i : dice(t, 300), .buf = dice(t, 30) ? t->room : NULL,
                                 .size = dice(t, 5) ? ROOM : dice(t, ROOM), .pass_through = dice(t, 4) == 0,
                                 .type = dice(t, 5) ? 0 : (int32_t)dice(t, 14) - 1, .fmt = (int32_t)dice(t, 5) - dice(t, 2)};
        CALL(rknn_inputs_set, c, dice(t, 4) ? 1 : n, dice(t, 30) ? in : NULL);
        break;
    case 10: case 11: case 12: CALL(rknn_run, c, NULL); break;
    case 13: CALL(rknn_wait, c, NULL); break;
    case 14: case 15:
        for (uint32_t i = 0; i < 4; i++) {
            bool given = dice(t, 2);
            out[i] = (rknn_output){.want_float = dice(t, 2) != 0, .is_prealloc = given, .index = dice(t, 6) ? i : dice(t, 300),
                                   .buf = given && dice(t, 9) ? t->room : NULL, .size = dice(t, 5) ? ROOM : dice(t, ROOM)};
        }
        n = dice(t, 4) ? 1 : n;
        if (rknn_outputs_get(c, n, out, NULL) == 0 && dice(t, 8)) CALL(rknn_outputs_release, c, n, out);
        if (dice(t, 8) == 0) CALL(rknn_outputs_release, c, n, out);
        break;
    case 16:
        a.n_dims = dice(t, 18);
        for (uint32_t i = 0; i < 16; i++) a.dims[i] = dice(t, 40);
        CALL(rknn_set_input_shapes, c, dice(t, 3), dice(t, 9) ? &a : NULL);
        break;
    case 17:
        *m = !alone || dice(t, 2) ? rknn_create_mem(c, dice(t, ROOM)) : rknn_create_mem_from_fd(c, -1, dice(t, 9) ? t->room : NULL, dice(t, ROOM), 0);
        break;
    case 18:
        if (rknn_query(c, dice(t, 2) ? QUERY_INPUT_ATTR : QUERY_OUTPUT_ATTR, &a, sizeof a) == 0) {
            if (dice(t, 4) == 0) a.type = (int32_t)dice(t, 14) - 1;
            if (dice(t, 4) == 0) a.fmt = (int32_t)dice(t, 6) - 1;
            if (dice(t, 4) == 0) a.w_stride = dice(t, 70000);
            CALL(rknn_set_io_mem, c, *m, &a);
        }
        break;
    default:
        switch (dice(t, 5)) {
        case 0: CALL(rknn_destroy_mem, c, *m); break;
        case 1: CALL(rknn_mem_sync, c, *m, (int)dice(t, 6) - 1); break;
        case 2: CALL(rknn_set_weight_mem, c, *m); break;
        case 3: CALL(rknn_set_internal_mem, c, *m); break;
        default: CALL(rknn_register_custom_ops, c, dice(t, 2) ? t->room : NULL, n);
        }
    }
}

static void *work(void *given) {
    thread *t = given;
    for (unsigned i = 0; i < steps; i++) step(t);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    FILE *f = fopen(argv[1], "rb");
    if (!f) return 2;
    size = fread(model, 1, sizeof model, f);
    fclose(f);
    steps = (unsigned)strtoul(argv[2], NULL, 10);
    unsigned threads = (unsigned)strtoul(argv[4], NULL, 10);
    thread all[16];
    alone = threads == 1;
    for (unsigned i = 0; i < threads && i < 16; i++) {
        all[i] = (thread){.state = strtoull(argv[3], NULL, 10) + 977 * i, .room = calloc(1, ROOM)};
        if (pthread_create(&all[i].id, NULL, work, &all[i]) != 0) return 2;
    }
    for (unsigned i = 0; i < threads && i < 16; i++) {
        pthread_join(all[i].id, NULL);
        free(all[i].room);
    }
    for (unsigned i = 0; i < CONTEXTS; i++) rknn_destroy(contexts[i]);
    rknn_virtual_counters n;
    rknn_virtual_get_counters(&n);
    uint64_t runs = 0;
    for (int i = 0; i < 8; i++) runs += n.runs[i];
    printf("%llu events, %llu runs, %llu misuses\n", (unsigned long long)n.events, (unsigned long long)runs, (unsigned long long)n.misuses);
    if (n.contexts || n.models || n.weight_bytes || n.mems || n.outputs) {
        fprintf(stderr, "left: %llu contexts, %llu models, %llu bytes of weights, %llu memories, %llu outputs\n",
                (unsigned long long)n.contexts, (unsigned long long)n.models, (unsigned long long)n.weight_bytes,
                (unsigned long long)n.mems, (unsigned long long)n.outputs);
        return 5;
    }
    if (!runs || !n.misuses) return 6; /* else nothing was tried */
    return wrong ? 4 : 0;
}
