/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads .rknn files (container version 6 as rknn-toolkit2 2.5.0 writes it; field names are ours).
 *
 * A file comes from a stranger. Every offset is checked against the flatbuffer part before it is followed, counts are
 * bounded before anything is allocated for them, and nothing is read twice from where it could change.
 */
#include "model.h"
#include "convert.h"
#include "literal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PORTS = 256, MAX_TEXT = 4 << 20, MAX_BATCH = 4096, MAX_MEAN = 65536 };
#define MAX_ELEMENTS (UINT64_C(1) << 27) /* so that sizes in bytes, of float64 too, fit in 32 bits with room to spare */

/* ---- flatbuffer ---- */

typedef struct {
    const uint8_t *b;
    uint64_t n;
} bytes_t;

typedef struct {
    bytes_t f;
    uint64_t at, vtable;
    uint32_t vtable_size, size;
} table_t;

typedef struct {
    const uint8_t *data;
    uint64_t at;
    uint32_t count;
} vector_t;

static uint32_t u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint32_t u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint64_t u64(const uint8_t *p) { return (uint64_t)u32(p) | (uint64_t)u32(p + 4) << 32; }

static bool table_at(bytes_t f, uint64_t at, table_t *t) {
    if (f.n < 4 || at > f.n - 4) return false;
    int64_t vtable = (int64_t)at - (int32_t)u32(f.b + at);
    if (vtable < 0 || (uint64_t)vtable > f.n - 4) return false;
    *t = (table_t){f, at, (uint64_t)vtable, u16(f.b + vtable), u16(f.b + vtable + 2)};
    return t->vtable_size >= 4 && t->vtable_size <= f.n - t->vtable && t->size >= 4 && t->size <= f.n - at;
}

/* Position of a field of `width` bytes, 0 if the table does not have it. */
static uint64_t field(const table_t *t, uint32_t slot, uint32_t width) {
    uint32_t entry = 4 + 2 * slot;
    if (entry + 2 > t->vtable_size) return 0;
    uint32_t offset = u16(t->f.b + t->vtable + entry);
    if (offset == 0 || offset + width > t->size) return 0;
    return t->at + offset;
}

/* A vector's elements; false if it is not there or reaches past the end. */
static bool vector(const table_t *t, uint32_t slot, uint32_t width, vector_t *v) {
    uint64_t at = field(t, slot, 4);
    if (!at) return false;
    at += u32(t->f.b + at);
    if (at > t->f.n - 4) return false;
    uint32_t count = u32(t->f.b + at);
    if ((uint64_t)count * width > t->f.n - 4 - at) return false;
    *v = (vector_t){t->f.b + at + 4, at + 4, count};
    return true;
}

static bool table_in(bytes_t f, const vector_t *v, uint32_t i, table_t *t) {
    return i < v->count && table_at(f, v->at + 4 * (uint64_t)i + u32(v->data + 4 * (uint64_t)i), t);
}

static int32_t scalar8(const table_t *t, uint32_t slot, int32_t missing) {
    uint64_t at = field(t, slot, 1);
    return at ? (int8_t)t->f.b[at] : missing;
}

static uint32_t scalar32(const table_t *t, uint32_t slot) {
    uint64_t at = field(t, slot, 4);
    return at ? u32(t->f.b + at) : 0;
}

/* ---- types ---- */

static int32_t type_named(const char *name) {
    static const struct { const char *name; int32_t type; } known[] = {
        {"float32", TYPE_FLOAT32}, {"float16", TYPE_FLOAT16}, {"int8", TYPE_INT8}, {"uint8", TYPE_UINT8},
        {"int16", TYPE_INT16}, {"uint16", TYPE_UINT16}, {"int32", TYPE_INT32}, {"uint32", TYPE_UINT32},
        {"int64", TYPE_INT64}, {"bool", TYPE_BOOL}, {"bfloat16", TYPE_BFLOAT16}, {"float64", TYPE_FLOAT64},
        {"uint64", TYPE_UINT64}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) return known[i].type;
    return -1;
}

static int32_t type_coded(int32_t code) {
    switch (code) {
    case 1: return TYPE_INT32;
    case 3: return TYPE_INT8;
    case 5: return TYPE_INT16;
    case 6: return TYPE_FLOAT32;
    case 7: return TYPE_INT64;
    case 10: return TYPE_FLOAT16;
    default: return -1;
    }
}

/* ---- the model ---- */

static int bad(char why[160], const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(why, 160, format, list);
    va_end(list);
    return RKNN_BAD_MODEL;
}

uint32_t port_dim(const model *m, const port *p, uint32_t set, uint32_t axis) {
    uint32_t d = p->shapes[set].dims[axis];
    return axis == 0 ? d * m->batch : d;
}

uint64_t port_elements(const model *m, const port *p, uint32_t set) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < p->n_dims; i++) n *= port_dim(m, p, set, i);
    return n;
}

static int read_shape(const table_t *t, model *m, port *p, uint32_t set, char why[160]) {
    port_shape *s = &p->shapes[set];
    vector_t v;
    if (!vector(t, 4, 4, &v) || v.count == 0 || v.count > RKNN_DIMS)
        return bad(why, "tensor %.60s has no shape of 1 to 16 dimensions", p->name);
    if (set > 0 && v.count != p->n_dims) return bad(why, "tensor %.60s changes its rank between shape sets", p->name);
    p->n_dims = v.count;
    uint64_t elements = m->batch;
    for (uint32_t i = 0; i < v.count; i++) {
        uint32_t d = u32(v.data + 4 * i);
        if (d == 0 || d > MAX_ELEMENTS || (elements *= d) > MAX_ELEMENTS)
            return bad(why, "tensor %.60s has an empty dimension or more than 2^27 elements", p->name);
        s->dims[i] = d;
    }
    if (vector(t, 3, 4, &v) && v.count <= RKNN_DIMS) {
        uint64_t product = m->batch;
        for (uint32_t i = 0; i < v.count; i++) {
            s->native[i] = u32(v.data + 4 * i);
            if (s->native[i] == 0 || s->native[i] > MAX_ELEMENTS || (product *= s->native[i]) > MAX_ELEMENTS)
                return bad(why, "tensor %.60s has an impossible native shape", p->name);
        }
        s->native_n = v.count;
    }
    s->native_bytes = scalar32(t, 12);
    if ((uint64_t)s->native_bytes * m->batch > MAX_ELEMENTS * 8) s->native_bytes = 0;
    s->w_align = scalar32(t, 20);
    if (s->w_align > 4096) s->w_align = 0;
    return RKNN_OK;
}

static int read_port(const table_t *t, model *m, port *p, char why[160]) {
    vector_t v, w;
    if (!vector(t, 5, 1, &v) || v.count == 0 || v.count > 65535) return bad(why, "an input or output has no name");
    if (!(p->name = malloc((size_t)v.count + 1))) return RKNN_NO_MEMORY;
    memcpy(p->name, v.data, v.count);
    p->name[v.count] = 0;
    p->name_length = v.count;
    if (!(p->shapes = calloc(m->n_sets, sizeof *p->shapes))) return RKNN_NO_MEMORY;
    p->type = type_coded(scalar8(t, 0, 0));
    p->onnx_type = -1;
    p->scale = 1;
    if (vector(t, 6, 1, &v) && v.count && vector(t, 10, 4, &v) && v.count) {
        memcpy(&p->scale, v.data, 4);
        if (vector(t, 11, 4, &w) && w.count) p->zp = (int32_t)u32(w.data);
        p->quantized = true;
    }
    return RKNN_OK;
}

static port *find_port(port *ports, uint32_t n, const char *name, size_t length) {
    for (uint32_t i = 0; i < n; i++)
        if (ports[i].name_length == length && memcmp(ports[i].name, name, length) == 0) return &ports[i];
    return NULL;
}

/* {"x": {"dtype": "float16", "layout": "NHWC"}}: the compiled types. */
static bool read_types(literal l, port *ports, uint32_t n) {
    char key[4096], word[32];
    size_t length;
    if (!literal_take(&l, '{')) return false;
    while (!literal_take(&l, '}')) {
        if (!literal_string(&l, key, sizeof key, &length) || !literal_take(&l, ':')) return false;
        port *p = length < sizeof key ? find_port(ports, n, key, length) : NULL;
        if (!p || !literal_take(&l, '{')) {
            if (!literal_skip(&l)) return false;
        } else while (!literal_take(&l, '}')) {
            if (!literal_string(&l, key, sizeof key, &length) || !literal_take(&l, ':')) return false;
            if (strcmp(key, "dtype") == 0 && literal_string(&l, word, sizeof word, &length)) p->type = type_named(word);
            else if (!literal_skip(&l)) return false;
            literal_take(&l, ',');
        }
        literal_take(&l, ',');
    }
    return true;
}

static bool read_numbers(literal *l, float **out, uint32_t *count) {
    uint32_t n = 0, room = 0;
    float *numbers = NULL;
    if (!literal_take(l, '[')) return false;
    while (!literal_take(l, ']')) {
        double d;
        if (n >= MAX_MEAN || !literal_number(l, &d)) { free(numbers); return false; }
        if (n == room) {
            float *more = realloc(numbers, (room = room ? room * 2 : 4) * sizeof *numbers);
            if (!more) { free(numbers); return false; }
            numbers = more;
        }
        numbers[n++] = (float)d;
        literal_take(l, ',');
    }
    free(*out);
    *out = numbers;
    *count = n;
    return true;
}

/* The entry of one tensor: its type in the ONNX, mean and std. */
static bool read_attribute(literal *l, port *p) {
    char key[64], word[32];
    size_t length;
    uint32_t n_mean = 0, n_std = 0;
    if (!literal_take(l, '{')) return false;
    while (!literal_take(l, '}')) {
        if (!literal_string(l, key, sizeof key, &length) || !literal_take(l, ':')) return false;
        bool ok;
        if (strcmp(key, "dtype") == 0) {
            ok = literal_string(l, word, sizeof word, &length);
            if (ok) p->onnx_type = type_named(word);
        } else if (strcmp(key, "mean") == 0) ok = read_numbers(l, &p->mean, &n_mean);
        else if (strcmp(key, "std") == 0) ok = read_numbers(l, &p->std, &n_std);
        else ok = literal_skip(l);
        if (!ok) return false;
        literal_take(l, ',');
    }
    p->n_mean = n_mean;
    p->n_std = n_std;
    for (uint32_t i = 0; i < n_mean; i++)
        if (!isfinite(p->mean[i])) return false;
    for (uint32_t i = 0; i < n_std; i++)
        if (!isfinite(p->std[i]) || p->std[i] == 0) return false;
    return true;
}

/* Makes `n` numbers of one, or of none (then they are all `missing`). false: no memory. */
static bool broadcast(float **numbers, uint32_t have, uint32_t n, float missing) {
    if (have == n) return true;
    float *more = realloc(*numbers, n * sizeof **numbers);
    if (!more) return false;
    *numbers = more;
    const float one = have ? more[0] : missing;
    for (uint32_t i = 0; i < n; i++) more[i] = one;
    return true;
}

/* The converter writes one mean where all are 0 and one std where all are 1, whatever the other has: both become as
 * many as the longer one has, and none where they change nothing. */
static int check_mean(const model *m, port *p, char why[160]) {
    uint32_t n = p->n_mean > p->n_std ? p->n_mean : p->n_std;
    bool any = false;
    for (uint32_t i = 0; i < p->n_mean; i++) any = any || p->mean[i] != 0;
    for (uint32_t i = 0; i < p->n_std; i++) any = any || p->std[i] != 1;
    /* Of inputs that are not 4-D the converter records what it was told, but its simulator does not apply it. */
    if (!any || p->n_dims != 4) {
        p->n_mean = p->n_std = 0;
        return RKNN_OK;
    }
    if ((p->n_mean > 1 && p->n_mean != n) || (p->n_std > 1 && p->n_std != n))
        return bad(why, "tensor %.60s has %u means and %u stds", p->name, p->n_mean, p->n_std);
    for (uint32_t s = 0; s < m->n_sets; s++)
        if (n > 1 && n != p->shapes[s].dims[1])
            return bad(why, "tensor %.60s has %u means or stds, but %u channels", p->name, n, p->shapes[s].dims[1]);
    if (!broadcast(&p->mean, p->n_mean, n, 0) || !broadcast(&p->std, p->n_std, n, 1)) return RKNN_NO_MEMORY;
    p->n_mean = p->n_std = n;
    return RKNN_OK;
}

/* {'attrs': {name: {...}}, ...}: Python's repr. */
static bool read_attributes(literal l, model *m) {
    char key[4096];
    size_t length;
    if (!literal_take(&l, '{')) return false;
    while (!literal_take(&l, '}')) {
        if (!literal_string(&l, key, sizeof key, &length) || !literal_take(&l, ':')) return false;
        if (strcmp(key, "attrs") != 0 || !literal_take(&l, '{')) {
            if (!literal_skip(&l)) return false;
        } else while (!literal_take(&l, '}')) {
            if (!literal_string(&l, key, sizeof key, &length) || !literal_take(&l, ':')) return false;
            port *p = NULL;
            if (length < sizeof key && !(p = find_port(m->in, m->n_in, key, length)))
                p = find_port(m->out, m->n_out, key, length);
            if (p ? !read_attribute(&l, p) : !literal_skip(&l)) return false;
            literal_take(&l, ',');
        }
        literal_take(&l, ',');
    }
    return true;
}

static bool text(const table_t *t, uint32_t slot, literal *l) {
    vector_t v;
    if (!vector(t, slot, 1, &v) || v.count > MAX_TEXT) return false;
    *l = (literal){(const char *)v.data, (const char *)v.data + v.count};
    return true;
}

static int check_port(const model *m, port *p, bool is_input, char why[160]) {
    size_t width = p->type >= 0 ? type_size(p->type) : 0;
    if (width == 0 || p->type == TYPE_FLOAT64 || p->type == TYPE_UINT64)
        return bad(why, "tensor %.60s has a type that the virtual NPU does not know", p->name);
    bool narrow = p->type == TYPE_INT8 || p->type == TYPE_UINT8 || p->type == TYPE_INT16 || p->type == TYPE_UINT16;
    p->quantized = p->quantized && narrow;
    if (p->quantized && (!isfinite(p->scale) || p->scale <= 0 || p->zp < -32768 || p->zp > 65535))
        return bad(why, "tensor %.60s has an impossible quantization", p->name);
    if (!p->quantized) p->scale = 1, p->zp = 0;
    if (p->onnx_type < 0) p->onnx_type = p->quantized || p->type == TYPE_FLOAT16 ? TYPE_FLOAT32 : p->type;
    if (is_input) return check_mean(m, p, why);
    p->n_mean = p->n_std = 0;
    return RKNN_OK;
}

static int read_graphs(const table_t *root, model *m, char why[160]) {
    vector_t graphs, tensors, in, out;
    table_t g, t;
    if (!vector(root, 2, 4, &graphs) || graphs.count == 0 || graphs.count > RKNN_SETS)
        return bad(why, "there is no list of 1 to 512 graphs");
    m->n_sets = m->dynamic ? graphs.count : 1;
    for (uint32_t set = 0; set < m->n_sets; set++) {
        if (!table_in(root->f, &graphs, set, &g) || !vector(&g, 0, 4, &tensors) || !vector(&g, 2, 4, &in) ||
            !vector(&g, 3, 4, &out))
            return bad(why, "graph %u is damaged", set);
        if (in.count == 0 || in.count > MAX_PORTS || out.count == 0 || out.count > MAX_PORTS)
            return bad(why, "graph %u does not have 1 to %d inputs and outputs", set, (int)MAX_PORTS);
        if (set == 0) {
            m->in = calloc(in.count, sizeof *m->in);
            m->out = calloc(out.count, sizeof *m->out);
            if (!m->in || !m->out) return RKNN_NO_MEMORY;
        } else if (in.count != m->n_in || out.count != m->n_out)
            return bad(why, "shape sets differ in their inputs or outputs");
        for (uint32_t i = 0; i < in.count + out.count; i++) {
            bool input = i < in.count;
            uint32_t k = input ? i : i - in.count, index = u32((input ? in.data : out.data) + 4 * (uint64_t)k);
            if (!table_in(root->f, &tensors, index, &t)) return bad(why, "graph %u names a tensor that is not there", set);
            port *p = input ? &m->in[k] : &m->out[k];
            if (set == 0) {
                *(input ? &m->n_in : &m->n_out) = k + 1; /* from here on model_free knows of it */
                int code = read_port(&t, m, p, why);
                if (code) return code;
            }
            int code = read_shape(&t, m, p, set, why);
            if (code) return code;
        }
    }
    return RKNN_OK;
}

static int read_root(const table_t *root, model *m, char why[160]) {
    literal l;
    double number = 0;
    if (text(root, 8, &l)) snprintf(m->target, sizeof m->target, "%.*s", (int)(l.end - l.p < 31 ? l.end - l.p : 31), l.p);
    if (!m->target[0]) return bad(why, "the file names no target SoC");
    if (text(root, 11, &l)) {
        size_t n = (size_t)(l.end - l.p);
        memcpy(m->custom, l.p, n < RKNN_CUSTOM - 1 ? n : RKNN_CUSTOM - 1);
    }
    m->batch = 1;
    if (text(root, 14, &l) && literal_number(&l, &number)) {
        if (!(number >= 0 && number <= MAX_BATCH)) return bad(why, "rknn_batch_size is out of bounds");
        m->batch = number >= 1 ? (uint32_t)number : 1;
    }
    m->dynamic = text(root, 16, &l) && l.end - l.p == 13 && memcmp(l.p, "dynamic_shape", 13) == 0;
    int code = read_graphs(root, m, why);
    if (code) return code;
    if (text(root, 12, &l) && !read_types(l, m->in, m->n_in)) return bad(why, "the list of input types is damaged");
    if (text(root, 13, &l) && !read_types(l, m->out, m->n_out)) return bad(why, "the list of output types is damaged");
    if (text(root, 3, &l) && !read_attributes(l, m)) return bad(why, "the list of tensor attributes is damaged");
    for (uint32_t i = 0; i < m->n_in; i++)
        if ((code = check_port(m, &m->in[i], true, why))) return code;
    for (uint32_t i = 0; i < m->n_out; i++)
        if ((code = check_port(m, &m->out[i], false, why))) return code;
    return RKNN_OK;
}

int model_read(const uint8_t *b, uint64_t size, model **out, char why[160]) {
    table_t root;
    *out = NULL;
    why[0] = 0;
    if (size < 72 || memcmp(b, "RKNN\0\0\0\0", 8) != 0) return bad(why, "not an .rknn file");
    uint64_t length = u64(b + 16);
    if (length < 8 || length > size - 64) return bad(why, "the file ends inside its flatbuffer part");
    uint64_t rest = size - 64 - length;
    if (rest < 8 || u64(b + 64 + length) > rest - 8) return bad(why, "the file ends inside its JSON part");
    bytes_t f = {b + 64, length};
    if (memcmp(f.b + 4, "RKNN", 4) != 0 || !table_at(f, u32(f.b), &root))
        return bad(why, "the flatbuffer part is damaged (or encrypted)");
    model *m = calloc(1, sizeof *m);
    if (!m) return RKNN_NO_MEMORY;
    m->weight_bytes = length;
    int code = read_root(&root, m, why);
    if (code) {
        model_free(m);
        return code;
    }
    *out = m;
    return RKNN_OK;
}

static void free_ports(port *ports, uint32_t n) {
    for (uint32_t i = 0; ports && i < n; i++) {
        free(ports[i].name);
        free(ports[i].shapes);
        free(ports[i].mean);
        free(ports[i].std);
    }
    free(ports);
}

void model_free(model *m) {
    if (!m) return;
    free_ports(m->in, m->n_in);
    free_ports(m->out, m->n_out);
    free(m);
}
