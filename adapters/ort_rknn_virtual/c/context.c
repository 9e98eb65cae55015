/* SPDX-License-Identifier: Apache-2.0
 *
 * Contexts: the way in and out of a call, their making, duplicating and end, and what is set in them.
 *
 * Every function that takes a context goes through enter() and leave(). A context is a slot in a table that is never
 * freed, and its handle names slot and generation, so a handle that is out of date can be told without touching freed
 * memory. One word of the slot says whose turn it is: two threads in one context are found out, not let in.
 */
#include "context.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONTEXTS = 1024, SLOT_BITS = 12 };

static context slots[MAX_CONTEXTS];
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;

/* A forked child has none of the parent's contexts. Their memory stays: a thread of the parent may have been inside. */
static void after_fork(void) {
    machine_after_fork();
    pthread_mutex_init(&slots_lock, NULL);
    for (uint32_t i = 0; i < MAX_CONTEXTS; i++) atomic_store(&slots[i].state, 0);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

/* ---- in and out of a call ---- */

int enter(call *k, int function, rknn_context handle) {
    memset(k, 0, sizeof *k);
    k->e.called = k->e.start = now_ns();
    k->e.kind = function;
    k->e.context = handle;
    if (function != F_init) {
        uint64_t slot = (handle & ((1u << SLOT_BITS) - 1)) - 1, found = handle;
        context *c = slot < MAX_CONTEXTS ? &slots[slot] : NULL;
        if (!c || (handle & BUSY) || !atomic_compare_exchange_strong(&c->state, &found, handle | BUSY)) {
            bool busy = c && !(handle & BUSY) && found == (handle | BUSY);
            k->e.index = (uint32_t)function;
            k->e.kind = F_misuse;
            sums.misuses++;
            return busy ? because(RKNN_FAIL, "another thread is using this context")
                        : because(RKNN_BAD_CONTEXT, "there is no such context (it may have been destroyed)");
        }
        k->c = c;
        k->e.core_mask = c->mask;
    }
    return fault_of(function, k->e.core_mask, handle);
}

int leave(call *k, int code) {
    if (k->c) atomic_store(&k->c->state, k->e.context);
    if (!k->quiet) {
        if (!k->e.end) k->e.end = now_ns();
        k->e.code = code;
        journal(&k->e);
    }
    return code;
}

/* ---- contexts ---- */

static void release_model(shared_model *s) {
    if (atomic_fetch_sub(&s->refs, 1) != 1) return;
    model_free(s->m);
    free(s);
    sums.models--;
}

void release_weights(weights *w) {
    if (atomic_fetch_sub(&w->refs, 1) != 1) return;
    sums.weight_bytes -= w->bytes;
    free(w);
}

static void empty_context(context *c) {
    model *m = c->model->m;
    for (uint32_t i = 0; c->in && i < m->n_in; i++) free(c->in[i].stored), free(c->in[i].onnx);
    for (uint32_t i = 0; c->out && i < m->n_out; i++) free(c->out[i].stored), free(c->out[i].onnx);
    free(c->in);
    free(c->out);
    free(c->tensors);
    sums.outputs -= c->lent;
    for (block *b = c->blocks, *next; b; b = next) {
        next = b->next;
        if (b->lent) sums.outputs--;
        free(b->data);
        free(b);
    }
    for (memory *b = c->memories, *next; b; b = next) {
        next = b->next;
        free_memory(b);
    }
    release_weights(c->weights);
    release_model(c->model);
    sums.contexts--;
}

int make_context(shared_model *s, weights *w, call *k) {
    context *c = NULL;
    pthread_mutex_lock(&slots_lock);
    for (uint32_t i = 0; i < MAX_CONTEXTS && !c; i++)
        if (slots[i].state == 0) {
            c = &slots[i];
            k->e.context = (++c->generation << SLOT_BITS) | (i + 1);
            c->state = k->e.context | BUSY;
        }
    pthread_mutex_unlock(&slots_lock);
    if (!c) {
        release_weights(w);
        release_model(s);
        return because(RKNN_NO_MEMORY, "there are %d contexts already", (int)MAX_CONTEXTS);
    }
    k->c = c;
    c->model = s;
    c->weights = w;
    c->flags = c->mask = c->set = 0;
    c->ran = false;
    c->frame = c->run_ns = c->lent = 0;
    c->compute = NULL;
    c->user = NULL;
    c->blocks = NULL;
    c->memories = NULL;
    sums.contexts++;
    c->in = calloc(s->m->n_in, sizeof *c->in);
    c->out = calloc(s->m->n_out, sizeof *c->out);
    c->tensors = calloc((size_t)s->m->n_in + s->m->n_out, sizeof *c->tensors);
    if (c->in && c->out && c->tensors) return RKNN_OK;
    empty_context(c);
    k->c = NULL;
    c->state = 0;
    return RKNN_NO_MEMORY;
}

RKNN_API int rknn_dup_context(rknn_context *in, rknn_context *out) {
    call k, made;
    if (!in || !out) return because(RKNN_BAD_PARAM, "rknn_dup_context needs two places of contexts");
    *out = in == out ? *out : 0;
    int code = enter(&k, F_dup_context, *in);
    if (code == RKNN_OK) {
        memset(&made, 0, sizeof made);
        k.c->model->refs++;
        k.c->weights->refs++;
        if ((code = make_context(k.c->model, k.c->weights, &made)) == RKNN_OK) {
            made.c->flags = k.c->flags;
            made.c->compute = k.c->compute;
            made.c->user = k.c->user;
            *out = made.e.context;
            k.e.address = made.e.context;
            made.quiet = true;
            leave(&made, code);
        }
    }
    return leave(&k, code);
}

RKNN_API int rknn_destroy(rknn_context handle) {
    call k;
    int code = enter(&k, F_destroy, handle);
    if (code == RKNN_OK) {
        context *c = k.c;
        empty_context(c);
        k.c = NULL;
        atomic_store(&c->state, 0);
    }
    return leave(&k, code);
}

int rknn_virtual_set_compute(rknn_context handle, rknn_virtual_compute compute, void *user) {
    call k;
    int code = enter(&k, F_set_compute, handle);
    if (code == RKNN_OK) {
        k.c->compute = compute;
        k.c->user = user;
    }
    return leave(&k, code);
}

RKNN_API int rknn_register_custom_ops(rknn_context handle, void *ops, uint32_t n) {
    call k;
    int code = enter(&k, F_register_custom_ops, handle);
    if (code == RKNN_OK && (!ops || !n)) code = because(RKNN_BAD_PARAM, "no custom operators were given");
    // Taken and logged, never called: a virtual NPU runs no operators at all.
    return leave(&k, code);
}

/* ---- cores and shapes ---- */

static int set_core_mask(context *c, uint32_t mask) {
    if (rknn_virtual_cores() == 1) return because(RKNN_BAD_TARGET, "an %s has one core and no masks", rknn_virtual_soc());
    if (mask > 7 && mask != 0xffff) return because(RKNN_BAD_PARAM, "%#x is no core mask", mask);
    if (mask == 5 || mask == 6) return because(RKNN_BAD_PARAM, "core mask %u: cores 0+2 and 1+2 do not work together", mask);
    if (mask != 0xffff && (mask & ~all_cores())) return because(RKNN_BAD_TARGET, "an %s has %u cores", rknn_virtual_soc(), rknn_virtual_cores());
    c->mask = mask;
    return RKNN_OK;
}

RKNN_API int rknn_set_core_mask(rknn_context handle, int mask) {
    call k;
    int code = enter(&k, F_set_core_mask, handle);
    if (code == RKNN_OK) code = set_core_mask(k.c, (uint32_t)mask);
    if (k.c) k.e.core_mask = (uint32_t)mask;
    return leave(&k, code);
}

RKNN_API int rknn_set_batch_core_num(rknn_context handle, int n) {
    call k;
    int code = enter(&k, F_set_batch_core_num, handle);
    if (code == RKNN_OK && (n < 1 || (uint32_t)n > rknn_virtual_cores())) code = because(RKNN_BAD_PARAM, "%d cores are not there", n);
    return leave(&k, code);
}

/* `a` gives the shape of input `p` in a set, in the order of axes that it names. */
static bool shape_is(const model *m, const port *p, uint32_t set, const rknn_tensor_attr *a) {
    if (a->n_dims != p->n_dims) return false;
    bool nchw = a->fmt == FMT_NCHW;
    for (uint32_t i = 0; i < p->n_dims; i++)
        if (a->dims[i] != (nchw ? port_dim(m, p, set, i) : port_reported_dim(m, p, set, true, i))) return false;
    return true;
}

static int set_input_shapes(context *c, uint32_t n, const rknn_tensor_attr *a) {
    model *m = c->model->m;
    if (n != m->n_in || !a) return because(RKNN_BAD_PARAM, "the model has %u inputs, %u shapes were given", m->n_in, n);
    for (uint32_t i = 0; i < n; i++)
        if (a[i].index >= n) return because(RKNN_BAD_PARAM, "there is no input %u", a[i].index);
    for (uint32_t set = 0; set < m->n_sets; set++) {
        bool fits = true;
        for (uint32_t i = 0; i < n && fits; i++) fits = shape_is(m, &m->in[a[i].index], set, &a[i]);
        if (!fits) continue;
        if (set != c->set) {
            for (uint32_t i = 0; i < n; i++) c->in[i].set = false;
            c->ran = false;
        }
        c->set = set;
        return RKNN_OK;
    }
    return because(RKNN_FAIL, "the model was not compiled for these shapes");
}

RKNN_API int rknn_set_input_shapes(rknn_context handle, uint32_t n, rknn_tensor_attr *a) {
    call k;
    int code = enter(&k, F_set_input_shapes, handle);
    return leave(&k, code ? code : set_input_shapes(k.c, n, a));
}
