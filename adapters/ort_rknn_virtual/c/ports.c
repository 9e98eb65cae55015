/* SPDX-License-Identifier: Apache-2.0
 *
 * What the runtime says of inputs and outputs, and how their buffers are converted.
 *
 * Between calls a tensor is kept in its compiled type but in the ONNX's order of axes, so that the usual way (NCHW
 * float32 in, NCHW out) needs no transposition at all.
 */
#include "ports.h"

#include <string.h>

static extents port_extents(const model *m, const port *p, uint32_t set) {
    uint32_t dims[RKNN_DIMS];
    for (uint32_t i = 0; i < p->n_dims; i++) dims[i] = port_dim(m, p, set, i);
    return extents_of(p->n_dims, dims);
}

/* Channel blocks of the native form; 0 where the port has none (it is plain, or NHWC with C of 1, 3 or 4). */
static uint32_t blocks(const port *p, uint32_t set) {
    const port_shape *s = &p->shapes[set];
    if (p->n_dims != 4 || s->native_n != 5 || s->native[2] != s->dims[2] || s->native[3] != s->dims[3]) return 0;
    if ((uint64_t)s->native[1] * s->native[4] < s->dims[1] || s->native[0] != s->dims[0]) return 0;
    return s->native[1] == 1 && s->native[4] == s->dims[1] && s->w_align > 1 ? 0 : s->native[4];
}

static uint32_t aligned_width(const port *p, uint32_t set) {
    const port_shape *s = &p->shapes[set];
    uint32_t align = s->w_align > 1 ? s->w_align : 1;
    return (s->dims[3] + align - 1) / align * align;
}

uint32_t port_reported_dim(const model *m, const port *p, uint32_t set, bool is_input, uint32_t axis) {
    static const uint32_t nhwc[4] = {0, 2, 3, 1};
    return port_dim(m, p, set, is_input && p->n_dims == 4 ? nhwc[axis] : axis);
}

void port_attr(const model *m, const port *p, uint32_t set, bool is_input, view v, rknn_tensor_attr *out) {
    uint32_t index = out->index, elements = (uint32_t)port_elements(m, p, set), width = (uint32_t)type_size(p->type);
    const port_shape *s = &p->shapes[set];
    memset(out, 0, sizeof *out);
    out->index = index;
    size_t length = strlen(p->name);
    memcpy(out->name, p->name, length < RKNN_NAME - 1 ? length : RKNN_NAME - 1);
    out->type = p->type;
    out->qnt_type = QNT_AFFINE; /* float16 too, with scale 1 and zero point 0 */
    out->scale = p->scale;
    out->zp = p->zp;
    out->n_dims = p->n_dims;
    bool four = p->n_dims == 4;
    for (uint32_t i = 0; i < p->n_dims; i++) out->dims[i] = port_reported_dim(m, p, set, is_input, i);
    out->fmt = !four ? FMT_UNDEFINED : is_input ? FMT_NHWC : FMT_NCHW;
    out->n_elems = elements;
    out->size = elements * width;
    out->size_with_stride = s->native_bytes * m->batch > out->size ? s->native_bytes * m->batch : out->size;
    if (is_input && four && !blocks(p, set)) out->w_stride = aligned_width(p, set);
    else if (is_input && four) out->w_stride = s->dims[3];
    if (v == VIEW_PLAIN) return;
    if (v == VIEW_NATIVE && blocks(p, set)) {
        out->fmt = FMT_NC1HWC2;
        out->n_dims = 5;
        out->n_elems = 1;
        for (uint32_t i = 0; i < 5; i++) out->n_elems *= out->dims[i] = s->native[i] * (i ? 1 : m->batch);
        out->size = out->n_elems * width;
        if (out->size_with_stride < out->size) out->size_with_stride = out->size;
    } else if (four && (v == VIEW_NATIVE_NHWC || s->native_n == 5)) {
        static const uint32_t nhwc[4] = {0, 2, 3, 1};
        out->fmt = FMT_NHWC;
        for (uint32_t i = 0; i < 4; i++) out->dims[i] = port_dim(m, p, set, nhwc[i]);
    } else if (four) {
        out->fmt = FMT_NCHW;
        for (uint32_t i = 0; i < 4; i++) out->dims[i] = port_dim(m, p, set, i);
    }
    if (is_input && out->fmt == FMT_NHWC) {
        out->w_stride = aligned_width(p, set);
        uint64_t padded = (uint64_t)(elements / s->dims[3]) * out->w_stride * width;
        if (padded > out->size_with_stride && padded <= UINT32_MAX) out->size_with_stride = (uint32_t)padded;
    }
}

/* false: a form that this port cannot have. */
static bool form_layout(const model *m, const port *p, uint32_t set, bool is_input, buffer_form f, layout *l) {
    extents e = port_extents(m, p, set);
    *l = layout_nchw(e);
    if (p->n_dims != 4) return f.fmt >= FMT_NCHW && f.fmt <= FMT_UNDEFINED;
    switch (f.fmt == FMT_UNDEFINED ? (is_input ? FMT_NHWC : FMT_NCHW) : f.fmt) {
    case FMT_NCHW: return true;
    case FMT_NHWC:
        if (f.w_stride > 65536 || (f.w_stride && f.w_stride < e.w)) return false;
        *l = layout_nhwc(e, f.w_stride);
        return true;
    case FMT_NC1HWC2:
        if (!blocks(p, set)) return false;
        *l = layout_blocks(e, p->shapes[set].native[1], p->shapes[set].native[4]);
        return true;
    default: return false;
    }
}

uint64_t form_bytes(const model *m, const port *p, uint32_t set, bool is_input, buffer_form f) {
    layout l;
    int32_t type = f.raw ? p->type : f.type;
    if (type < 0 || type > TYPE_BFLOAT16 || !form_layout(m, p, set, is_input, f, &l)) return 0;
    return layout_span(port_extents(m, p, set), l) * type_size(type);
}

void form_read(const model *m, const port *p, uint32_t set, buffer_form f, const void *buffer, void *stored) {
    extents e = port_extents(m, p, set);
    transform t = {0};
    layout l;
    if (!form_layout(m, p, set, true, f, &l)) return;
    if (!f.raw) {
        t.mean = p->mean;
        t.std = p->std;
        t.n_mean = p->n_mean;
        t.dst_scale = p->quantized ? p->scale : 0;
        t.dst_zp = p->zp;
    }
    convert(e, f.raw ? p->type : f.type, buffer, l, p->type, stored, layout_nchw(e), &t);
}

void form_write(const model *m, const port *p, uint32_t set, buffer_form f, const void *stored, void *buffer) {
    extents e = port_extents(m, p, set);
    transform t = {0};
    layout l;
    if (!form_layout(m, p, set, false, f, &l)) return;
    if (!f.raw && p->quantized) {
        t.src_scale = p->scale;
        t.src_zp = p->zp;
    }
    convert(e, p->type, stored, layout_nchw(e), f.raw ? p->type : f.type, buffer, l, &t);
}

void port_to_onnx(const model *m, const port *p, uint32_t set, const void *stored, void *onnx) {
    extents e = port_extents(m, p, set);
    transform t = {.src_scale = p->quantized ? p->scale : 0, .src_zp = p->zp};
    convert(e, p->type, stored, layout_nchw(e), p->onnx_type, onnx, layout_nchw(e), &t);
}

void port_from_onnx(const model *m, const port *p, uint32_t set, const void *onnx, void *stored) {
    extents e = port_extents(m, p, set);
    transform t = {.dst_scale = p->quantized ? p->scale : 0, .dst_zp = p->zp};
    convert(e, p->onnx_type, onnx, layout_nchw(e), p->type, stored, layout_nchw(e), &t);
}

/* ---- the pattern ---- */

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= UINT64_C(0xD6E8FEB86659FD93);
    x ^= x >> 32;
    x *= UINT64_C(0xD6E8FEB86659FD93);
    return x ^ (x >> 32);
}

uint64_t pattern_seed(uint64_t seed, uint32_t input, const void *bytes, uint64_t nbytes) {
    const uint8_t *b = bytes;
    uint64_t sum = 0, words = nbytes / 8, w;
    for (uint64_t i = 0; i < words; i++) {
        memcpy(&w, b + 8 * i, 8);
        sum += w * (2 * i + 1);
    }
    if (nbytes % 8) {
        w = 0;
        memcpy(&w, b + 8 * words, nbytes % 8);
        sum += w * (2 * words + 1);
    }
    return seed + mix(sum + (input + 1) * GOLDEN + nbytes);
}

void pattern_fill(uint64_t seed, uint32_t output, int32_t type, void *stored, uint64_t elements) {
    uint64_t t = mix(seed + (output + 1) * GOLDEN);
#define FILL(ctype, expr)                                                            \
    do {                                                                             \
        ctype *to = stored;                                                          \
        for (uint64_t i = 0; i < elements; i++, t += GOLDEN) {                       \
            uint32_t u = (uint32_t)(t >> 53);                                        \
            to[i] = (ctype)(expr);                                                   \
        }                                                                            \
    } while (0)
    switch (type) {
    case TYPE_FLOAT32: FILL(float, ((float)u - 1024.0f) / 1024.0f); break;
    case TYPE_FLOAT16: FILL(uint16_t, half_of(((float)u - 1024.0f) / 1024.0f)); break;
    case TYPE_BFLOAT16: FILL(uint16_t, bfloat_of(((float)u - 1024.0f) / 1024.0f)); break;
    case TYPE_BOOL: FILL(uint8_t, u & 1); break;
    case TYPE_INT8: case TYPE_UINT8: FILL(uint8_t, u); break;
    case TYPE_INT16: case TYPE_UINT16: FILL(uint16_t, u); break;
    case TYPE_INT32: case TYPE_UINT32: FILL(uint32_t, u); break;
    case TYPE_INT64: FILL(uint64_t, u); break;
    default: break;
    }
}
