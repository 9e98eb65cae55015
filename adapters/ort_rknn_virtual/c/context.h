/* SPDX-License-Identifier: Apache-2.0
 * A context, and the way in and out of a call: what the files with rknn_* functions share. What the NPU that does not
 * exist does and does not do: rknn_virtual.h; how contexts work: context.c. */
#ifndef VIRTUAL_CONTEXT_H
#define VIRTUAL_CONTEXT_H

#include "machine.h"
#include "model.h"
#include "ports.h"

/* Contexts that were duplicated from each other share their model; the last of them frees it. */
typedef struct {
    atomic_uint refs;
    model *m;
} shared_model;

/* Counted on their own: contexts of different models may share weights too. */
typedef struct {
    atomic_uint refs;
    uint64_t bytes;
} weights;

/* Listed by their context, so that a pointer from outside is looked up and not trusted. */
typedef struct memory {
    rknn_tensor_mem face; /* what the program holds; never read back */
    struct memory *next;
    uint8_t *at;
    uint64_t size;
    void *own;
    void *map; /* of an imported dma-buf: the NPU's own mapping */
    uint64_t mapped;
    bool writable, synced; /* synced: rknn_mem_sync to the device since the last run */
} memory;

/* A buffer lent out by rknn_outputs_get; kept when it comes back, for the next run. */
typedef struct block {
    struct block *next;
    uint64_t size;
    bool lent;
    void *data;
} block;

typedef struct {
    uint8_t *stored; /* compiled type, ONNX order */
    uint8_t *onnx;   /* for the callback */
    uint64_t stored_room, onnx_room;
    bool set;
    memory *bound;
    buffer_form form; /* of `bound` */
    bool dangling;    /* what it was bound to was destroyed */
    bool unseen;      /* of an output: the NPU has written, and no rknn_mem_sync has fetched it yet */
} port_state;

typedef struct {
    atomic_uint_fast64_t state; /* 0 free, else the handle, with BUSY while a call is inside */
    uint64_t generation;
    shared_model *model;
    weights *weights;
    uint32_t flags, mask, set;
    bool ran;
    uint64_t frame, run_ns, lent; /* lent: outputs in the program's own buffers */
    rknn_virtual_compute compute;
    void *user;
    port_state *in, *out;
    rknn_virtual_tensor *tensors; /* n_in + n_out, for the callback */
    block *blocks;
    memory *memories;
} context;

/* In a context's `state`: a call is inside. */
#define BUSY (UINT64_C(1) << 63)

/* A call from enter() to leave(). */
typedef struct {
    rknn_virtual_event e;
    context *c; /* NULL: not inside of one */
    bool quiet; /* no event in the journal, as the call writes its own or is part of another */
} call;

/* Every function that takes a context begins and ends with these, also when enter() fails: it makes the event that
 * leave() writes, and no two threads are inside of one context. 0, or the code that the call has to return. */
int enter(call *k, int function, rknn_context handle);
int leave(call *k, int code); /* returns `code` */

void free_memory(memory *b);
/* What the NPU wrote to imported memory is seen by the program after rknn_mem_sync from the device. */
void fetch_outputs(context *c, memory *b);

/* A context in a free slot, still BUSY; takes one reference of model and weights, also when it fails. */
int make_context(shared_model *s, weights *w, call *k);
void release_weights(weights *w);

/* Here because the sizes that a question reports are those that rknn_set_*_mem asks for. */
void mem_query(context *c, rknn_mem_size *out);

#endif
