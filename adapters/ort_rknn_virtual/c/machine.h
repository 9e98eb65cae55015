/* SPDX-License-Identifier: Apache-2.0
 * The machine that is not there: SoC, clock, cores that are busy, faults, events, sums. See machine.c. */
#ifndef VIRTUAL_MACHINE_H
#define VIRTUAL_MACHINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include "rknn_virtual.h"

/* Every function of the runtime, and "misuse"; the order is the `kind` of an event. */
#define FUNCTIONS(X)                                                                                                 \
    X(none) X(init) X(dup_context) X(destroy) X(query) X(set_core_mask) X(set_batch_core_num) X(set_input_shapes)    \
    X(inputs_set) X(run) X(wait) X(outputs_get) X(outputs_release) X(create_mem) X(create_mem2)                      \
    X(create_mem_from_fd) X(create_mem_from_phys) X(destroy_mem) X(mem_sync) X(set_io_mem) X(set_weight_mem)         \
    X(set_internal_mem) X(register_custom_ops) X(set_compute) X(virtual_dmabuf) X(misuse)
#define ONE(name) F_##name,
enum { FUNCTIONS(ONE) F_COUNT };
#undef ONE

typedef struct {
    atomic_uint_fast64_t contexts, models, weight_bytes, mems, outputs, input_bytes, misuses;
    atomic_uint_fast64_t runs[8];
} sums_t;
extern sums_t sums;

uint64_t now_ns(void);
/* Returns at `target` or a few microseconds after; at once if it has passed. */
void wait_until(uint64_t target);

uint32_t all_cores(void); /* mask of the SoC's cores; 0: unknown SoC */
const char *runtime_version(void);
bool attr_follows(void);
/* Modelled time of a run on these cores, in nanoseconds. */
uint64_t model_ns(uint32_t cores);

/* Waits until the mask (0: any one core) is free and takes it; 0 if `deadline` (0: none) came first. `start`: since when
 * it has them. The driver (drivers/rknpu/rknpu_job.c of Rockchip's kernel) starts the next job of a core in the interrupt
 * that ends the last one, so a run that waited begins where the last one ended, not when its thread has woken up. */
uint32_t cores_take(uint32_t mask, uint64_t deadline, uint64_t *start);
/* `end`: when the run ended, which may be before its thread woke up. */
void cores_give(uint32_t taken, uint64_t end, bool ran);

/* The SoC that a name means: variants of the RK3588 count as one. */
const char *soc_family(const char *name);

/* In a forked child: nothing of the parent's is left of it but its settings and faults. */
void machine_after_fork(void);

/* 0, or the code of a fault that this call meets. */
int fault_of(int function, uint32_t mask, rknn_context context);

/* Adds an event; fills in sequence and thread. */
void journal(rknn_virtual_event *event);
/* Says why: kept for rknn_virtual_message, and a line in the log. Returns `code`. */
int because(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
