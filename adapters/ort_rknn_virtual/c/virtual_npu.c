/* SPDX-License-Identifier: Apache-2.0
 *
 * The rknn_* functions on an NPU that does not exist. What it does and does not do: rknn_virtual.h.
 *
 * Every function that takes a context goes through enter() and leave(). A context is a slot in a table that is never
 * freed, and its handle names slot and generation, so a handle that is out of date can be told without touching freed
 * memory. One word of the slot says whose turn it is: two threads in one context are found out, not let in.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"
#include "model.h"
#include "ports.h"

enum { MAX_CONTEXTS = 1024, SLOT_BITS = 12 };
#define BUSY (UINT64_C(1) << 63)
#define MAX_MODEL_BYTES (UINT64_C(8) << 30)

typedef struct {
    atomic_uint refs;
    model *m;
} shared_model;

typedef struct {
    atomic_uint refs;
    uint64_t bytes;
} weights;

typedef struct memory {
    rknn_tensor_mem face; /* what the program holds; never read back */
    struct memory *next;
    uint8_t *at;
    uint64_t size;
    void *own;
} memory;

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

typedef struct {
    rknn_virtual_event e;
    context *c;
    bool quiet;
} call;

static context slots[MAX_CONTEXTS];
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- in and out of a call ---- */

static int enter(call *k, int function, rknn_context handle) {
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

static int leave(call *k, int code) {
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

static void release_weights(weights *w) {
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
        sums.mems--;
        free(b->own);
        free(b);
    }
    release_weights(c->weights);
    release_model(c->model);
    sums.contexts--;
}

/* A context in a free slot, still BUSY; takes one reference of model and weights, also when it fails. */
static int make_context(shared_model *s, weights *w, call *k) {
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

static int read_file(const char *path, const rknn_init_extend *extend, uint8_t **bytes, uint64_t *size) {
    struct stat st;
    *bytes = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return because(RKNN_FAIL, "cannot open the model %.120s: %s", path, strerror(errno));
    int code = RKNN_OK;
    uint64_t from = 0;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) code = because(RKNN_FAIL, "the model %.120s is not a file", path);
    else {
        *size = (uint64_t)st.st_size;
        if (extend && extend->real_model_size) {
            from = extend->real_model_offset < 0 ? UINT64_MAX : (uint64_t)extend->real_model_offset;
            if (from > *size || extend->real_model_size > *size - from)
                code = because(RKNN_BAD_PARAM, "real_model_offset and real_model_size reach past the file's end");
            *size = extend->real_model_size;
        }
        if (!code && (*size < 8 || *size > MAX_MODEL_BYTES)) code = because(RKNN_BAD_MODEL, "the file is empty or too large");
        if (!code && !(*bytes = malloc(*size))) code = RKNN_NO_MEMORY;
    }
    for (uint64_t done = 0; !code && done < *size;) {
        ssize_t n = pread(fd, *bytes + done, *size - done, (off_t)(from + done));
        if (n > 0) done += (uint64_t)n;
        else if (n == 0 || errno != EINTR) code = because(RKNN_FAIL, "cannot read the model %.120s", path);
    }
    close(fd);
    if (code) {
        free(*bytes);
        *bytes = NULL;
    }
    return code;
}

/* rk3588 and rk3588s are one; rk3566 and rk3568 are not. */
static bool same_soc(const char *target) {
    const char *soc = rknn_virtual_soc();
    size_t n = strlen(soc);
    return strncmp(target, soc, n) == 0 && (target[n] == 0 || (strcmp(soc, "rk3588") == 0 && target[n] == 's' && !target[n + 1]));
}

/* The weights of another context, for the flag 0x20. */
static weights *shared_weights(rknn_context handle) {
    call k;
    weights *w = NULL;
    if (enter(&k, F_none, handle) == RKNN_OK) {
        w = k.c->weights;
        w->refs++;
        k.quiet = true;
    }
    leave(&k, w ? RKNN_OK : RKNN_BAD_CONTEXT);
    return w;
}

static int init(call *k, rknn_context *out, const void *given, uint32_t size, uint32_t flags,
                const rknn_init_extend *extend) {
    char why[160];
    uint8_t *file = NULL;
    const uint8_t *bytes = given;
    uint64_t length = size;
    if (!out || !given) return because(RKNN_BAD_PARAM, "no place for the context, or no model");
    *out = 0;
    if (!rknn_virtual_cores()) return because(RKNN_NO_DEVICE, "RKNN_VIRTUAL_SOC names a SoC that is not known");
    if (size == 0) {
        int code = read_file(given, extend, &file, &length);
        if (code) return code;
        bytes = file;
    }
    k->e.nbytes = length;
    model *m;
    int code = model_read(bytes, length, &m, why);
    free(file);
    if (code) return because(code, "the model is damaged: %s", code == RKNN_BAD_MODEL ? why : "no memory for it");
    if (!same_soc(m->target)) {
        code = because(RKNN_BAD_TARGET, "the model is for %s, this is an %s", m->target, rknn_virtual_soc());
        model_free(m);
        return code;
    }
    shared_model *s = calloc(1, sizeof *s);
    weights *w = NULL;
    if (flags & FLAG_SHARE_WEIGHTS) {
        if (!(w = extend ? shared_weights(extend->ctx) : NULL))
            code = because(RKNN_BAD_PARAM, "the flag for shared weights needs a live context in the extend structure");
    } else if ((w = calloc(1, sizeof *w))) {
        w->refs = 1;
        w->bytes = flags & FLAG_INFO_ONLY ? 0 : m->weight_bytes;
        sums.weight_bytes += w->bytes;
    }
    if (!s || !w) {
        if (w) release_weights(w);
        free(s);
        model_free(m);
        return code ? code : RKNN_NO_MEMORY;
    }
    s->refs = 1;
    s->m = m;
    sums.models++;
    if ((code = make_context(s, w, k))) return code;
    k->c->flags = flags;
    *out = k->e.context;
    return RKNN_OK;
}

RKNN_API int rknn_init(rknn_context *out, void *given, uint32_t size, uint32_t flags, rknn_init_extend *extend) {
    call k;
    int code = enter(&k, F_init, 0);
    return leave(&k, code ? code : init(&k, out, given, size, flags, extend));
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

/* ---- questions ---- */

static int attr_query(context *c, uint32_t set, bool is_input, view v, void *info) {
    model *m = c->model->m;
    rknn_tensor_attr *a = info;
    if (a->index >= (is_input ? m->n_in : m->n_out))
        return because(RKNN_BAD_PARAM, "there is no %s %u", is_input ? "input" : "output", a->index);
    port_attr(m, is_input ? &m->in[a->index] : &m->out[a->index], set, is_input, v, a);
    return RKNN_OK;
}

static int range_query(model *m, rknn_input_range *r) {
    if (!m->dynamic) return because(RKNN_FAIL, "the model has no dynamic shapes");
    if (r->index >= m->n_in) return because(RKNN_BAD_PARAM, "there is no input %u", r->index);
    port *p = &m->in[r->index];
    uint32_t index = r->index;
    memset(r, 0, sizeof *r);
    r->index = index;
    r->shape_number = m->n_sets;
    r->fmt = p->n_dims == 4 ? FMT_NHWC : FMT_UNDEFINED;
    r->n_dims = p->n_dims;
    memcpy(r->name, p->name, p->name_length < RKNN_NAME - 1 ? p->name_length : RKNN_NAME - 1);
    for (uint32_t s = 0; s < m->n_sets; s++)
        for (uint32_t d = 0; d < p->n_dims; d++) r->dyn_range[s][d] = port_reported_dim(m, p, s, true, d);
    return RKNN_OK;
}

static void mem_query(context *c, rknn_mem_size *out) {
    model *m = c->model->m;
    uint64_t internal = 0;
    for (uint32_t i = 0; i < m->n_in; i++) internal += port_elements(m, &m->in[i], 0) * type_size(m->in[i].type);
    for (uint32_t i = 0; i < m->n_out; i++) internal += port_elements(m, &m->out[i], 0) * type_size(m->out[i].type);
    memset(out, 0, sizeof *out);
    out->total_weight_size = c->weights->bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)c->weights->bytes;
    out->total_internal_size = internal > UINT32_MAX ? UINT32_MAX : (uint32_t)internal;
    out->total_dma_allocated_size = c->weights->bytes + internal;
}

static int query(context *c, int command, void *info, uint32_t size) {
    static const uint32_t sizes[] = {8, 376, 376, 16, 8, 512, 64, 1024, 376, 376, 376, 376, 64, 33040, 376, 376, 376, 376};
    model *m = c->model->m;
    if (command < 0 || (size_t)command >= sizeof sizes / sizeof *sizes || !info)
        return because(RKNN_BAD_PARAM, "no question %d, or no place for the answer", command);
    if (size < sizes[command]) return because(RKNN_BAD_PARAM, "question %d needs %u bytes, not %u", command, sizes[command], size);
    uint32_t plain = attr_follows() ? c->set : 0;
    switch (command) {
    case QUERY_IN_OUT_NUM:
        *(rknn_input_output_num *)info = (rknn_input_output_num){m->n_in, m->n_out};
        return RKNN_OK;
    case QUERY_INPUT_ATTR: return attr_query(c, plain, true, VIEW_PLAIN, info);
    case QUERY_OUTPUT_ATTR: return attr_query(c, plain, false, VIEW_PLAIN, info);
    case QUERY_NATIVE_INPUT_ATTR: return attr_query(c, plain, true, VIEW_NATIVE, info);
    case QUERY_NATIVE_OUTPUT_ATTR: return attr_query(c, plain, false, VIEW_NATIVE, info);
    case QUERY_NATIVE_NHWC_INPUT_ATTR: return attr_query(c, plain, true, VIEW_NATIVE_NHWC, info);
    case QUERY_NATIVE_NHWC_OUTPUT_ATTR: return attr_query(c, plain, false, VIEW_NATIVE_NHWC, info);
    case QUERY_CURRENT_INPUT_ATTR: return attr_query(c, c->set, true, VIEW_PLAIN, info);
    case QUERY_CURRENT_OUTPUT_ATTR: return attr_query(c, c->set, false, VIEW_PLAIN, info);
    case QUERY_CURRENT_NATIVE_INPUT_ATTR: return attr_query(c, c->set, true, VIEW_NATIVE, info);
    case QUERY_CURRENT_NATIVE_OUTPUT_ATTR: return attr_query(c, c->set, false, VIEW_NATIVE, info);
    case QUERY_INPUT_DYNAMIC_RANGE: return range_query(m, info);
    case QUERY_PERF_RUN:
        if (!c->ran) return because(RKNN_FAIL, "nothing has run yet");
        ((rknn_perf_run *)info)->run_duration = (int64_t)(c->run_ns / 1000);
        return RKNN_OK;
    case QUERY_SDK_VERSION: {
        rknn_sdk_version *v = info;
        memset(v, 0, sizeof *v);
        snprintf(v->api_version, sizeof v->api_version, "%s (virtual NPU, %s)", runtime_version(), rknn_virtual_soc());
        snprintf(v->drv_version, sizeof v->drv_version, "0.9.8 (virtual)");
        return RKNN_OK;
    }
    case QUERY_MEM_SIZE: mem_query(c, info); return RKNN_OK;
    case QUERY_CUSTOM_STRING: memcpy(info, m->custom, RKNN_CUSTOM); return RKNN_OK;
    default: return because(RKNN_FAIL, "question %d is not modelled", command);
    }
}

RKNN_API int rknn_query(rknn_context handle, int command, void *info, uint32_t size) {
    call k;
    int code = enter(&k, F_query, handle);
    if (k.c) k.e.index = (uint32_t)command;
    return leave(&k, code ? code : query(k.c, command, info, size));
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

/* ---- a run ---- */

static bool room(uint8_t **buffer, uint64_t *have, uint64_t need) {
    if (*have >= need) return true;
    uint8_t *more = malloc(need);
    if (!more) return false;
    free(*buffer);
    *buffer = more;
    *have = need;
    return true;
}

static uint64_t stored_bytes(const context *c, const port *p) {
    return port_elements(c->model->m, p, c->set) * type_size(p->type);
}

static int input_set(context *c, const rknn_input *in, uint64_t *converted) {
    model *m = c->model->m;
    if (in->index >= m->n_in) return because(RKNN_BAD_INPUT, "there is no input %u", in->index);
    port *p = &m->in[in->index];
    port_state *s = &c->in[in->index];
    buffer_form f = {.type = in->type, .fmt = in->fmt, .raw = in->pass_through != 0};
    if (f.raw) f.fmt = FMT_UNDEFINED;
    uint64_t need = f.fmt == FMT_NC1HWC2 ? 0 : form_bytes(m, p, c->set, true, f);
    if (!in->buf || !need) return because(RKNN_BAD_PARAM, "input %u: no buffer, or type %d fmt %d", in->index, in->type, in->fmt);
    if (in->size < need)
        return because(RKNN_BAD_PARAM, "input %u: %u bytes given, %llu needed", in->index, in->size, (unsigned long long)need);
    if (!room(&s->stored, &s->stored_room, stored_bytes(c, p))) return because(RKNN_NO_MEMORY, "no memory for input %u", in->index);
    form_read(m, p, c->set, f, in->buf, s->stored);
    s->set = true;
    s->bound = NULL;
    *converted = need;
    return RKNN_OK;
}

static int inputs_set(call *k, uint32_t n, const rknn_input *in) {
    if (n == 0 || n > k->c->model->m->n_in || !in)
        return because(RKNN_BAD_INPUT, "the model has %u inputs, %u were given", k->c->model->m->n_in, n);
    int code = RKNN_OK;
    k->quiet = true;
    for (uint32_t i = 0; i < n && code == RKNN_OK; i++) {
        uint64_t converted = 0;
        if (i) k->e.start = k->e.end;
        code = input_set(k->c, &in[i], &converted);
        sums.input_bytes += converted;
        k->e.end = now_ns();
        k->e.index = in[i].index;
        k->e.address = (uintptr_t)in[i].buf;
        k->e.nbytes = in[i].size;
        k->e.code = code;
        journal(&k->e);
    }
    return code;
}

RKNN_API int rknn_inputs_set(rknn_context handle, uint32_t n, rknn_input *in) {
    call k;
    int code = enter(&k, F_inputs_set, handle);
    return leave(&k, code ? code : inputs_set(&k, n, in));
}

static bool describe(context *c, const port *p, port_state *s, rknn_virtual_tensor *t) {
    model *m = c->model->m;
    t->name = p->name;
    t->type = p->onnx_type;
    t->n_dims = p->n_dims;
    for (uint32_t i = 0; i < p->n_dims; i++) t->dims[i] = port_dim(m, p, c->set, i);
    t->nbytes = port_elements(m, p, c->set) * type_size(p->onnx_type);
    if (!room(&s->onnx, &s->onnx_room, t->nbytes)) return false;
    t->data = s->onnx;
    return true;
}

static int compute(context *c) {
    model *m = c->model->m;
    rknn_virtual_tensor *in = c->tensors, *out = in + m->n_in;
    for (uint32_t i = 0; i < m->n_in; i++) {
        if (!describe(c, &m->in[i], &c->in[i], &in[i])) return because(RKNN_NO_MEMORY, "no memory for input %u", i);
        port_to_onnx(m, &m->in[i], c->set, c->in[i].stored, c->in[i].onnx);
    }
    for (uint32_t i = 0; i < m->n_out; i++) {
        if (!describe(c, &m->out[i], &c->out[i], &out[i])) return because(RKNN_NO_MEMORY, "no memory for output %u", i);
        memset(c->out[i].onnx, 0, out[i].nbytes); /* what a callback leaves out is zero, not another run's */
    }
    int code = c->compute(c->user, m->n_in, in, m->n_out, out);
    if (code) return because(code < 0 ? code : RKNN_FAIL, "the compute callback answered %d", code);
    for (uint32_t i = 0; i < m->n_out; i++) port_from_onnx(m, &m->out[i], c->set, c->out[i].onnx, c->out[i].stored);
    return RKNN_OK;
}

static void pattern(context *c) {
    model *m = c->model->m;
    uint64_t seed = 0;
    for (uint32_t i = 0; i < m->n_in; i++) seed = pattern_seed(seed, i, c->in[i].stored, stored_bytes(c, &m->in[i]));
    for (uint32_t i = 0; i < m->n_out; i++)
        pattern_fill(seed, i, m->out[i].type, c->out[i].stored, port_elements(m, &m->out[i], c->set));
}

/* Inputs that lie in memory of the program are read, room for all outputs is made. */
static int prepare(context *c) {
    model *m = c->model->m;
    if (c->flags & FLAG_INFO_ONLY) return because(RKNN_FAIL, "the context was made for questions only (flag 0x100)");
    for (uint32_t i = 0; i < m->n_in; i++) {
        port_state *s = &c->in[i];
        if (!s->bound) {
            if (!s->set) return because(RKNN_BAD_INPUT, "input %u has not been set", i);
            continue;
        }
        uint64_t need = form_bytes(m, &m->in[i], c->set, true, s->form);
        if (!need || need > s->bound->size) return because(RKNN_BAD_INPUT, "the memory of input %u is too small", i);
        if (!room(&s->stored, &s->stored_room, stored_bytes(c, &m->in[i]))) return because(RKNN_NO_MEMORY, "no memory for input %u", i);
        form_read(m, &m->in[i], c->set, s->form, s->bound->at, s->stored);
    }
    for (uint32_t i = 0; i < m->n_out; i++) {
        port_state *s = &c->out[i];
        if (s->bound) {
            uint64_t need = form_bytes(m, &m->out[i], c->set, false, s->form);
            if (!need || need > s->bound->size) return because(RKNN_BAD_OUTPUT, "the memory of output %u is too small", i);
        }
        if (!room(&s->stored, &s->stored_room, stored_bytes(c, &m->out[i]))) return because(RKNN_NO_MEMORY, "no memory for output %u", i);
    }
    return RKNN_OK;
}

static int run(call *k, rknn_run_extend *extend) {
    context *c = k->c;
    model *m = c->model->m;
    int code = prepare(c);
    if (code) return code;
    uint64_t deadline = extend && extend->timeout_ms > 0 ? k->e.called + (uint64_t)extend->timeout_ms * 1000000u : 0;
    uint32_t taken = cores_take(c->mask, deadline);
    if (!taken) return because(RKNN_TIMEOUT, "no core became free within %d ms", extend->timeout_ms);
    k->e.start = now_ns();
    k->e.core_mask = taken;
    uint64_t done = k->e.start + model_ns(taken);
    if (c->compute) code = compute(c);
    else pattern(c);
    if (code == RKNN_OK) {
        wait_until(deadline && deadline < done ? deadline : done);
        if (deadline && (deadline < done || now_ns() > deadline))
            code = because(RKNN_TIMEOUT, "the run took longer than %d ms", extend->timeout_ms);
    }
    k->e.end = now_ns();
    cores_give(taken, code == RKNN_OK);
    if (code) return code;
    c->run_ns = k->e.end - k->e.start;
    c->ran = true;
    c->frame++;
    for (uint32_t i = 0; i < m->n_out; i++)
        if (c->out[i].bound) form_write(m, &m->out[i], c->set, c->out[i].form, c->out[i].stored, c->out[i].bound->at);
    if (extend) extend->frame_id = c->frame;
    return RKNN_OK;
}

RKNN_API int rknn_run(rknn_context handle, rknn_run_extend *extend) {
    call k;
    int code = enter(&k, F_run, handle);
    if (k.c) k.c->ran = false; /* a run that fails leaves nothing to get */
    return leave(&k, code ? code : run(&k, extend));
}

RKNN_API int rknn_wait(rknn_context handle, rknn_run_extend *extend) {
    call k;
    int code = enter(&k, F_wait, handle);
    if (code == RKNN_OK && !k.c->ran) code = because(RKNN_FAIL, "no run to wait for, or it failed");
    if (code == RKNN_OK && extend) extend->frame_id = k.c->frame;
    return leave(&k, code);
}

/* ---- outputs ---- */

static void *lend(context *c, uint64_t size) {
    block *b = c->blocks;
    while (b && (b->lent || b->size < size)) b = b->next;
    if (!b) {
        b = calloc(1, sizeof *b);
        if (!b || !(b->data = malloc(size))) {
            free(b);
            return NULL;
        }
        b->size = size;
        b->next = c->blocks;
        c->blocks = b;
    }
    b->lent = true;
    return b->data;
}

static int output_get(context *c, rknn_output *o) {
    model *m = c->model->m;
    if (o->index >= m->n_out) return because(RKNN_BAD_OUTPUT, "there is no output %u", o->index);
    port *p = &m->out[o->index];
    buffer_form f = {.type = TYPE_FLOAT32, .fmt = FMT_NCHW, .raw = !o->want_float};
    uint64_t need = form_bytes(m, p, c->set, false, f);
    if (o->is_prealloc) {
        if (!o->buf || o->size < need)
            return because(RKNN_BAD_PARAM, "output %u: %u bytes given, %llu needed", o->index, o->size, (unsigned long long)need);
        c->lent++;
    } else {
        void *to = lend(c, need);
        if (!to) return because(RKNN_NO_MEMORY, "no memory for output %u", o->index);
        o->buf = to;
        o->size = (uint32_t)need;
    }
    sums.outputs++;
    form_write(m, p, c->set, f, c->out[o->index].stored, o->buf);
    return RKNN_OK;
}

static int output_release(context *c, rknn_output *o) {
    if (o->is_prealloc) {
        if (c->lent) {
            c->lent--;
            sums.outputs--;
        }
        return RKNN_OK;
    }
    for (block *b = c->blocks; b; b = b->next)
        if (b->lent && b->data == o->buf) {
            b->lent = false;
            o->buf = NULL;
            sums.outputs--;
            return RKNN_OK;
        }
    return because(RKNN_BAD_OUTPUT, "output %u was not got from this context, or was released before", o->index);
}

static int outputs_get(context *c, uint32_t n, rknn_output *out, rknn_output_extend *extend) {
    if (n == 0 || n > c->model->m->n_out || !out)
        return because(RKNN_BAD_OUTPUT, "the model has %u outputs, %u were asked for", c->model->m->n_out, n);
    if (!c->ran) return because(RKNN_FAIL, "nothing has run yet, or the run failed");
    for (uint32_t i = 0; i < n; i++) {
        int code = output_get(c, &out[i]);
        if (code) {
            while (i--) output_release(c, &out[i]);
            return code;
        }
    }
    if (extend) extend->frame_id = c->frame;
    return RKNN_OK;
}

RKNN_API int rknn_outputs_get(rknn_context handle, uint32_t n, rknn_output *out, rknn_output_extend *extend) {
    call k;
    int code = enter(&k, F_outputs_get, handle);
    return leave(&k, code ? code : outputs_get(k.c, n, out, extend));
}

RKNN_API int rknn_outputs_release(rknn_context handle, uint32_t n, rknn_output *out) {
    call k;
    int code = enter(&k, F_outputs_release, handle);
    if (code == RKNN_OK && (!out || n > k.c->model->m->n_out)) code = because(RKNN_BAD_OUTPUT, "there are not %u outputs", n);
    for (uint32_t i = 0; code == RKNN_OK && i < n; i++) code = output_release(k.c, &out[i]);
    return leave(&k, code);
}

/* ---- memory ---- */

static rknn_tensor_mem *make_memory(int function, rknn_context handle, void *at, uint64_t phys, int32_t fd, int32_t offset,
                                    uint64_t size, bool own) {
    call k;
    memory *b = NULL;
    int code = enter(&k, function, handle);
    if (code == RKNN_OK && (size == 0 || size > UINT32_MAX || (!own && !at)))
        code = because(RKNN_BAD_PARAM, "%llu bytes at %p are no memory", (unsigned long long)size, at);
    if (code == RKNN_OK && (!(b = calloc(1, sizeof *b)) || (own && posix_memalign(&b->own, 64, size)))) {
        free(b);
        b = NULL;
        code = because(RKNN_NO_MEMORY, "no %llu bytes of memory", (unsigned long long)size);
    }
    if (b) {
        if (own) memset(b->own, 0, size);
        b->at = own ? b->own : at;
        b->size = size;
        b->face = (rknn_tensor_mem){b->at, phys, fd, offset, (uint32_t)size, 0, NULL};
        b->next = k.c->memories;
        k.c->memories = b;
        sums.mems++;
        k.e.address = (uintptr_t)b->at;
        k.e.nbytes = size;
    }
    leave(&k, code);
    return b ? &b->face : NULL;
}

static memory *find_memory(context *c, const rknn_tensor_mem *face) {
    memory *b = c->memories;
    while (b && &b->face != face) b = b->next;
    if (!b) because(RKNN_BAD_PARAM, "that memory is not of this context, or was destroyed before");
    return b;
}

RKNN_API rknn_tensor_mem *rknn_create_mem(rknn_context handle, uint32_t size) {
    return make_memory(F_create_mem, handle, NULL, 0, -1, 0, size, true);
}

RKNN_API rknn_tensor_mem *rknn_create_mem2(rknn_context handle, uint64_t size, uint64_t flags) {
    (void)flags; /* cacheable or not, SRAM or not: there is no cache to keep in step */
    return make_memory(F_create_mem2, handle, NULL, 0, -1, 0, size, true);
}

RKNN_API rknn_tensor_mem *rknn_create_mem_from_fd(rknn_context handle, int32_t fd, void *at, uint32_t size, int32_t offset) {
    return make_memory(F_create_mem_from_fd, handle, at, 0, fd, offset, size, false);
}

RKNN_API rknn_tensor_mem *rknn_create_mem_from_phys(rknn_context handle, uint64_t phys, void *at, uint32_t size) {
    return make_memory(F_create_mem_from_phys, handle, at, phys, -1, 0, size, false);
}

RKNN_API int rknn_destroy_mem(rknn_context handle, rknn_tensor_mem *mem) {
    call k;
    int code = enter(&k, F_destroy_mem, handle);
    if (code == RKNN_OK) {
        context *c = k.c;
        memory *b = find_memory(c, mem), **at = &c->memories;
        if (b) {
            while (*at != b) at = &(*at)->next;
            *at = b->next;
            for (uint32_t i = 0; i < c->model->m->n_in; i++) if (c->in[i].bound == b) c->in[i].bound = NULL;
            for (uint32_t i = 0; i < c->model->m->n_out; i++) if (c->out[i].bound == b) c->out[i].bound = NULL;
            free(b->own);
            free(b);
            sums.mems--;
        } else code = RKNN_BAD_PARAM;
    }
    return leave(&k, code);
}

RKNN_API int rknn_mem_sync(rknn_context handle, rknn_tensor_mem *mem, int mode) {
    call k;
    int code = enter(&k, F_mem_sync, handle);
    if (code == RKNN_OK && (!find_memory(k.c, mem) || mode < 1 || mode > 3)) code = RKNN_BAD_PARAM;
    return leave(&k, code);
}

/* An attribute says by its name whether it is of an input or an output. */
static int set_io_mem(context *c, rknn_tensor_mem *mem, const rknn_tensor_attr *a) {
    model *m = c->model->m;
    memory *b = find_memory(c, mem);
    if (!b || !a) return RKNN_BAD_PARAM;
    bool is_input = a->index < m->n_in && strncmp(a->name, m->in[a->index].name, RKNN_NAME - 1) == 0;
    if (!is_input && !(a->index < m->n_out && strncmp(a->name, m->out[a->index].name, RKNN_NAME - 1) == 0))
        return because(RKNN_BAD_PARAM, "no input or output %u has that name", a->index);
    port *p = is_input ? &m->in[a->index] : &m->out[a->index];
    buffer_form f = {.type = a->type, .fmt = a->fmt, .raw = a->pass_through || a->type == p->type};
    if (is_input && a->fmt == FMT_NHWC) f.w_stride = a->w_stride;
    uint64_t need = form_bytes(m, p, c->set, is_input, f);
    if (!need) return because(RKNN_BAD_PARAM, "%s cannot have type %d, fmt %d, w_stride %u", p->name, a->type, a->fmt, a->w_stride);
    if (need > b->size) return because(RKNN_BAD_PARAM, "%llu bytes given, %llu needed", (unsigned long long)b->size, (unsigned long long)need);
    port_state *s = is_input ? &c->in[a->index] : &c->out[a->index];
    s->bound = b;
    s->form = f;
    return RKNN_OK;
}

RKNN_API int rknn_set_io_mem(rknn_context handle, rknn_tensor_mem *mem, rknn_tensor_attr *a) {
    call k;
    int code = enter(&k, F_set_io_mem, handle);
    return leave(&k, code ? code : set_io_mem(k.c, mem, a));
}

static int set_own_memory(int function, rknn_context handle, rknn_tensor_mem *mem) {
    call k;
    rknn_mem_size size;
    int code = enter(&k, function, handle);
    if (code == RKNN_OK) {
        memory *b = find_memory(k.c, mem);
        mem_query(k.c, &size);
        uint32_t need = function == F_set_weight_mem ? size.total_weight_size : size.total_internal_size;
        if (!b || b->size < need) code = because(RKNN_BAD_PARAM, "no memory of this context, or less than %u bytes", need);
    }
    return leave(&k, code);
}

RKNN_API int rknn_set_weight_mem(rknn_context handle, rknn_tensor_mem *mem) { return set_own_memory(F_set_weight_mem, handle, mem); }
RKNN_API int rknn_set_internal_mem(rknn_context handle, rknn_tensor_mem *mem) { return set_own_memory(F_set_internal_mem, handle, mem); }

RKNN_API int rknn_register_custom_ops(rknn_context handle, void *ops, uint32_t n) {
    call k;
    int code = enter(&k, F_register_custom_ops, handle);
    if (code == RKNN_OK && (!ops || !n)) code = because(RKNN_BAD_PARAM, "no custom operators were given");
    // Taken and logged, never called: a virtual NPU runs no operators at all.
    return leave(&k, code);
}
