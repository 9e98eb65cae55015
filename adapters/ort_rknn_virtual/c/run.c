/* SPDX-License-Identifier: Apache-2.0
 * Inputs, a run, outputs. Memory of the program that was set as one of them is read and written by the run. */
#include "context.h"

#include <stdlib.h>
#include <string.h>

/* ---- a run ---- */

static bool room(uint8_t **buffer, uint64_t *have, uint64_t need) {
    if (*have >= need) return true;
    uint8_t *more = calloc(1, need);
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
    s->dangling = false;
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
    void *user = c->user;
    int wanted = RKNN_OK;
    if (user == RKNN_VIRTUAL_TICKET) {
        static atomic_uint tickets;
        wanted = (int)(atomic_fetch_add(&tickets, 1) & 0x3fffffff) + 1;
        user = (void *)(uintptr_t)wanted;
    }
    int code = c->compute(user, m->n_in, in, m->n_out, out);
    if (code != wanted) return because(code < 0 ? code : RKNN_FAIL, "the compute callback answered %d", code);
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

/* Something that a real NPU would not notice: an event of its own. Returns a code. */
static int misused(context *c, const char *format, uint32_t index) {
    rknn_virtual_event e = {.kind = F_misuse, .code = RKNN_FAIL, .index = F_run, .core_mask = c->mask};
    e.called = e.start = e.end = now_ns();
    e.context = atomic_load(&c->state) & ~BUSY;
    sums.misuses++;
    int code = because(RKNN_FAIL, format, index);
    journal(&e);
    return code;
}

void fetch_outputs(context *c, memory *b) {
    model *m = c->model->m;
    for (uint32_t i = 0; i < m->n_out; i++) {
        port_state *s = &c->out[i];
        if (s->bound == b && s->unseen) form_write(m, &m->out[i], c->set, s->form, s->stored, b->at);
        if (s->bound == b) s->unseen = false;
    }
}

/* Inputs that lie in memory of the program are read, room for all outputs is made. */
static int prepare(context *c) {
    model *m = c->model->m;
    if (c->flags & FLAG_INFO_ONLY) return because(RKNN_FAIL, "the context was made for questions only (flag 0x100)");
    for (uint32_t i = 0; i < m->n_in; i++) {
        port_state *s = &c->in[i];
        if (s->dangling) return misused(c, "input %u is bound to memory that was destroyed", i);
        if (!s->bound) {
            if (!s->set) return because(RKNN_BAD_INPUT, "input %u has not been set", i);
            continue;
        }
        uint64_t need = form_bytes(m, &m->in[i], c->set, true, s->form);
        if (!need || need > s->bound->size) return because(RKNN_BAD_INPUT, "the memory of input %u is too small", i);
        if (!room(&s->stored, &s->stored_room, stored_bytes(c, &m->in[i]))) return because(RKNN_NO_MEMORY, "no memory for input %u", i);
        if (s->bound->map && !s->bound->synced) {
            misused(c, "the memory of input %u was not synchronized to the device since the last run", i);
            continue; /* the NPU reads what was there before */
        }
        form_read(m, &m->in[i], c->set, s->form, s->bound->at, s->stored);
    }
    for (uint32_t i = 0; i < m->n_out; i++) {
        port_state *s = &c->out[i];
        if (s->dangling) return misused(c, "output %u is bound to memory that was destroyed", i);
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
    uint32_t taken = cores_take(c->mask, deadline, &k->e.start);
    if (!taken) return because(RKNN_TIMEOUT, "no core became free within %d ms", extend->timeout_ms);
    k->e.core_mask = taken;
    uint64_t done = k->e.start + model_ns(taken);
    if (c->compute) code = compute(c);
    else pattern(c);
    k->e.end = now_ns();
    if (code == RKNN_OK) {
        wait_until(deadline && deadline < done ? deadline : done);
        if (deadline && (deadline < done || now_ns() > deadline))
            code = because(RKNN_TIMEOUT, "the run took longer than %d ms", extend->timeout_ms);
        if (code) k->e.end = now_ns();
        else if (k->e.end < done) k->e.end = done;
    }
    cores_give(taken, k->e.end, code == RKNN_OK);
    if (code) return code;
    c->run_ns = k->e.end - k->e.start;
    c->ran = true;
    c->frame++;
    for (uint32_t i = 0; i < m->n_in; i++)
        if (c->in[i].bound) c->in[i].bound->synced = false;
    for (uint32_t i = 0; i < m->n_out; i++) {
        port_state *s = &c->out[i];
        if (!s->bound) continue;
        s->unseen = s->bound->map != NULL;
        if (!s->unseen) form_write(m, &m->out[i], c->set, s->form, s->stored, s->bound->at);
    }
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
