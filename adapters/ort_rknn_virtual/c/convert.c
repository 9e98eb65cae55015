/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors from one element type and order of axes to another.
 *
 * Every conversion runs through a small buffer of float32 (or int64, where both ends are integers, so that large ids
 * stay exact): load a stretch, transform it, store it. Each step is one plain loop per type, which compilers turn into
 * vector code; there is no call per element.
 */
#include "convert.h"

#include <string.h>

enum { STRETCH = 1024 };

size_t type_size(int32_t type) {
    switch (type) {
    case TYPE_INT8: case TYPE_UINT8: case TYPE_BOOL: return 1;
    case TYPE_FLOAT16: case TYPE_BFLOAT16: case TYPE_INT16: case TYPE_UINT16: return 2;
    case TYPE_FLOAT32: case TYPE_INT32: case TYPE_UINT32: return 4;
    case TYPE_INT64: case TYPE_UINT64: case TYPE_FLOAT64: return 8;
    default: return 0;
    }
}

extents extents_of(uint32_t n_dims, const uint32_t *dims) {
    extents e = {1, 1, 1, 1};
    if (n_dims == 4) return (extents){dims[0], dims[1], dims[2], dims[3]};
    if (n_dims == 1) e.w = dims[0];
    if (n_dims >= 2) {
        e.n = dims[0];
        e.c = dims[1];
        for (uint32_t i = 2; i < n_dims; i++) e.w *= dims[i];
    }
    return e;
}

layout layout_nchw(extents e) {
    size_t plane = e.h * e.w;
    return (layout){.sn = e.c * plane, .sc1 = plane, .sc2 = 0, .sh = e.w, .sw = 1, .block = 1};
}

layout layout_nhwc(extents e, size_t w_stride) {
    size_t row = (w_stride ? w_stride : e.w) * e.c;
    return (layout){.sn = e.h * row, .sc1 = 0, .sc2 = 1, .sh = row, .sw = e.c, .block = e.c};
}

layout layout_blocks(extents e, size_t c1, size_t c2) {
    size_t plane = e.h * e.w * c2;
    return (layout){.sn = c1 * plane, .sc1 = plane, .sc2 = 1, .sh = e.w * c2, .sw = c2, .block = c2};
}

size_t layout_span(extents e, layout l) {
    return (e.n - 1) * l.sn + ((e.c - 1) / l.block) * l.sc1 + (e.c < l.block ? e.c - 1 : l.block - 1) * l.sc2 +
           (e.h - 1) * l.sh + (e.w - 1) * l.sw + 1;
}

static inline float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
    float scaled = from_bits(rest) * from_bits(0x77800000u);       /* x 2^112: exponent 15 becomes 127 */
    uint32_t bits = rest >= 0x0f800000u ? rest | 0x7f800000u : to_bits(scaled);
    return from_bits(bits | sign);
}

static inline uint16_t float_to_half(float f) {
    uint32_t x = to_bits(f), sign = (x >> 16) & 0x8000u;
    x &= 0x7fffffffu;
    uint32_t tiny = to_bits(from_bits(x < 0x38800000u ? x : 0u) + 0.5f) - 0x3f000000u; /* the addition rounds */
    uint32_t normal = (x - 0x38000000u + 0xfffu + ((x >> 13) & 1u)) >> 13;
    uint32_t huge = x > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t h = x >= 0x47800000u ? huge : x < 0x38800000u ? tiny : normal;
    return (uint16_t)(h | sign);
}

static inline float bfloat_to_float(uint16_t b) { return from_bits((uint32_t)b << 16); }

static inline uint16_t float_to_bfloat(float f) {
    uint32_t x = to_bits(f);
    if ((x & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((x >> 16) | 0x40u);
    return (uint16_t)((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}

uint16_t half_of(float value) { return float_to_half(value); }
uint16_t bfloat_of(float value) { return float_to_bfloat(value); }

static inline int64_t whole(double v) { /* towards zero, saturated; not a number gives 0 */
    if (!(v == v)) return 0;
    if (v >= 9223372036854775807.0) return INT64_MAX;
    if (v <= -9223372036854775808.0) return INT64_MIN;
    return (int64_t)v;
}

/* Buffers of callers need not be aligned to their element: memcpy of one element costs nothing and says so. */
#define LOAD(ctype, to, expr)                                                       \
    do {                                                                            \
        const uint8_t *s = src;                                                     \
        if (step == 1) {                                                            \
            for (size_t i = 0; i < count; i++) {                                    \
                ctype v;                                                            \
                memcpy(&v, s + i * sizeof v, sizeof v);                             \
                to[i] = (expr);                                                     \
            }                                                                       \
        } else {                                                                    \
            for (size_t i = 0; i < count; i++) {                                    \
                ctype v;                                                            \
                memcpy(&v, s + i * step * sizeof v, sizeof v);                      \
                to[i] = (expr);                                                     \
            }                                                                       \
        }                                                                           \
    } while (0)

#define STORE(ctype, from, expr)                                                    \
    do {                                                                            \
        uint8_t *d = dst;                                                           \
        if (step == 1) {                                                            \
            for (size_t i = 0; i < count; i++) {                                    \
                __typeof__(from[0]) x = from[i];                                    \
                ctype v = (expr);                                                   \
                memcpy(d + i * sizeof v, &v, sizeof v);                             \
            }                                                                       \
        } else {                                                                    \
            for (size_t i = 0; i < count; i++) {                                    \
                __typeof__(from[0]) x = from[i];                                    \
                ctype v = (expr);                                                   \
                memcpy(d + i * step * sizeof v, &v, sizeof v);                      \
            }                                                                       \
        }                                                                           \
    } while (0)

static void load_float(int32_t type, const void *src, size_t step, size_t count, float *restrict to) {
    switch (type) {
    case TYPE_FLOAT32: LOAD(float, to, v); break;
    case TYPE_FLOAT16: LOAD(uint16_t, to, half_to_float(v)); break;
    case TYPE_BFLOAT16: LOAD(uint16_t, to, bfloat_to_float(v)); break;
    case TYPE_FLOAT64: LOAD(double, to, (float)v); break;
    case TYPE_INT8: LOAD(int8_t, to, (float)v); break;
    case TYPE_UINT8: LOAD(uint8_t, to, (float)v); break;
    case TYPE_BOOL: LOAD(uint8_t, to, (float)(v != 0)); break;
    case TYPE_INT16: LOAD(int16_t, to, (float)v); break;
    case TYPE_UINT16: LOAD(uint16_t, to, (float)v); break;
    case TYPE_INT32: LOAD(int32_t, to, (float)v); break;
    case TYPE_UINT32: LOAD(uint32_t, to, (float)v); break;
    case TYPE_INT64: LOAD(int64_t, to, (float)v); break;
    case TYPE_UINT64: LOAD(uint64_t, to, (float)v); break;
    default: break;
    }
}

static void store_float(int32_t type, const float *restrict from, size_t count, void *dst, size_t step) {
    switch (type) {
    case TYPE_FLOAT32: STORE(float, from, x); break;
    case TYPE_FLOAT16: STORE(uint16_t, from, float_to_half(x)); break;
    case TYPE_BFLOAT16: STORE(uint16_t, from, float_to_bfloat(x)); break;
    case TYPE_FLOAT64: STORE(double, from, (double)x); break;
    /* Integers come here quantized: whole numbers within their range. */
    case TYPE_INT8: STORE(int8_t, from, (int8_t)(int32_t)x); break;
    case TYPE_UINT8: STORE(uint8_t, from, (uint8_t)(int32_t)x); break;
    case TYPE_INT16: STORE(int16_t, from, (int16_t)(int32_t)x); break;
    case TYPE_UINT16: STORE(uint16_t, from, (uint16_t)(int32_t)x); break;
    default: break;
    }
}

static void load_int(int32_t type, const void *src, size_t step, size_t count, int64_t *restrict to) {
    switch (type) {
    case TYPE_FLOAT32: LOAD(float, to, whole((double)v)); break;
    case TYPE_FLOAT16: LOAD(uint16_t, to, whole((double)half_to_float(v))); break;
    case TYPE_BFLOAT16: LOAD(uint16_t, to, whole((double)bfloat_to_float(v))); break;
    case TYPE_FLOAT64: LOAD(double, to, whole(v)); break;
    case TYPE_INT8: LOAD(int8_t, to, v); break;
    case TYPE_UINT8: LOAD(uint8_t, to, v); break;
    case TYPE_BOOL: LOAD(uint8_t, to, v != 0); break;
    case TYPE_INT16: LOAD(int16_t, to, v); break;
    case TYPE_UINT16: LOAD(uint16_t, to, v); break;
    case TYPE_INT32: LOAD(int32_t, to, v); break;
    case TYPE_UINT32: LOAD(uint32_t, to, v); break;
    case TYPE_INT64: LOAD(int64_t, to, v); break;
    case TYPE_UINT64: LOAD(uint64_t, to, (int64_t)v); break;
    default: break;
    }
}

static void store_int(int32_t type, const int64_t *restrict from, size_t count, void *dst, size_t step) {
    switch (type) { /* narrower types wrap, as C and numpy do */
    case TYPE_INT8: STORE(int8_t, from, (int8_t)(uint64_t)x); break;
    case TYPE_UINT8: STORE(uint8_t, from, (uint8_t)(uint64_t)x); break;
    case TYPE_BOOL: STORE(uint8_t, from, (uint8_t)(x != 0)); break;
    case TYPE_INT16: STORE(int16_t, from, (int16_t)(uint64_t)x); break;
    case TYPE_UINT16: STORE(uint16_t, from, (uint16_t)(uint64_t)x); break;
    case TYPE_INT32: STORE(int32_t, from, (int32_t)(uint64_t)x); break;
    case TYPE_UINT32: STORE(uint32_t, from, (uint32_t)(uint64_t)x); break;
    case TYPE_INT64: STORE(int64_t, from, x); break;
    case TYPE_UINT64: STORE(uint64_t, from, (uint64_t)x); break;
    default: break;
    }
}

static bool is_integer(int32_t type) {
    return type != TYPE_FLOAT32 && type != TYPE_FLOAT16 && type != TYPE_BFLOAT16 && type != TYPE_FLOAT64;
}

static void quantize(float *restrict v, size_t count, float scale, int32_t zp, int32_t type) {
    float lo = type == TYPE_INT8 ? -128.0f : type == TYPE_INT16 ? -32768.0f : 0.0f;
    float hi = type == TYPE_INT8 ? 127.0f : type == TYPE_INT16 ? 32767.0f : type == TYPE_UINT8 ? 255.0f : 65535.0f;
    const float z = (float)zp, magic = 12582912.0f; /* 1.5 x 2^23: adding and taking it away rounds, ties to even */
    lo -= z;
    hi -= z;
    for (size_t i = 0; i < count; i++) {
        float x = v[i] / scale;
        x = x > lo ? x : lo; /* not a number ends here too */
        x = x < hi ? x : hi;
        v[i] = ((x + magic) - magic) + z;
    }
}

static void copy_strided(size_t size, const uint8_t *src, size_t from, uint8_t *dst, size_t to, size_t count) {
    switch (size) {
    case 1: for (size_t i = 0; i < count; i++) dst[i * to] = src[i * from]; break;
    case 2: for (size_t i = 0; i < count; i++) memcpy(dst + i * to * 2, src + i * from * 2, 2); break;
    case 4: for (size_t i = 0; i < count; i++) memcpy(dst + i * to * 4, src + i * from * 4, 4); break;
    default: for (size_t i = 0; i < count; i++) memcpy(dst + i * to * 8, src + i * from * 8, 8); break;
    }
}

/* One run of elements at constant steps, all of one channel (or with no transform by channel). */
static void convert_run(int32_t src_type, const uint8_t *src, size_t from, int32_t dst_type, uint8_t *dst, size_t to,
                        size_t count, const transform *t, size_t channel) {
    size_t ss = type_size(src_type), ds = type_size(dst_type);
    bool plain = t->src_scale == 0 && t->n_mean == 0 && t->dst_scale == 0;
    if (plain && src_type == dst_type && src_type != TYPE_BOOL) {
        if (from == 1 && to == 1) memcpy(dst, src, count * ss);
        else copy_strided(ss, src, from, dst, to, count);
        return;
    }
    if (is_integer(dst_type) && t->dst_scale == 0) {
        int64_t ints[STRETCH];
        float floats[STRETCH];
        for (size_t done = 0; done < count; done += STRETCH) {
            size_t k = count - done < STRETCH ? count - done : STRETCH;
            if (t->src_scale == 0) load_int(src_type, src + done * from * ss, from, k, ints);
            else {
                load_float(src_type, src + done * from * ss, from, k, floats);
                for (size_t i = 0; i < k; i++) ints[i] = whole((double)((floats[i] - (float)t->src_zp) * t->src_scale));
            }
            store_int(dst_type, ints, k, dst + done * to * ds, to);
        }
        return;
    }
    float buffer[STRETCH];
    for (size_t done = 0; done < count; done += STRETCH) {
        size_t k = count - done < STRETCH ? count - done : STRETCH;
        load_float(src_type, src + done * from * ss, from, k, buffer);
        if (t->src_scale != 0) {
            const float z = (float)t->src_zp, s = t->src_scale;
            for (size_t i = 0; i < k; i++) buffer[i] = (buffer[i] - z) * s;
        }
        if (t->n_mean) {
            size_t m = t->n_mean == 1 ? 0 : channel;
            const float mean = t->mean[m], std = t->std[m];
            for (size_t i = 0; i < k; i++) buffer[i] = (buffer[i] - mean) / std;
        }
        if (t->dst_scale != 0) quantize(buffer, k, t->dst_scale, t->dst_zp, dst_type);
        store_float(dst_type, buffer, k, dst + done * to * ds, to);
    }
}

void convert(extents e, int32_t src_type, const void *src, layout from, int32_t dst_type, void *dst, layout to,
             const transform *t) {
    const uint8_t *s = src;
    uint8_t *d = dst;
    size_t ss = type_size(src_type), ds = type_size(dst_type), plane = e.h * e.w;
    bool dense = from.block == 1 && to.block == 1 && from.sw == 1 && to.sw == 1 && from.sh == e.w && to.sh == e.w &&
                 from.sc1 == plane && to.sc1 == plane && from.sn == e.c * plane && to.sn == e.c * plane;
    if (dense && t->n_mean <= 1) {
        convert_run(src_type, s, 1, dst_type, d, 1, e.n * e.c * plane, t, 0);
        return;
    }
    /* A plane without gaps is one long row. Stretches of a row go through all channels before the next stretch, so
     * that interleaved channels are read while they are in the cache. */
    bool flat = from.sh == e.w * from.sw && to.sh == e.w * to.sw;
    size_t rows = flat ? 1 : e.h, length = flat ? plane : e.w;
    for (size_t n = 0; n < e.n; n++)
        for (size_t h = 0; h < rows; h++)
            for (size_t w = 0; w < length; w += STRETCH) {
                size_t k = length - w < STRETCH ? length - w : STRETCH;
                for (size_t c = 0; c < e.c; c++) {
                    size_t a = n * from.sn + (c / from.block) * from.sc1 + (c % from.block) * from.sc2 + h * from.sh +
                               w * from.sw;
                    size_t b = n * to.sn + (c / to.block) * to.sc1 + (c % to.block) * to.sc2 + h * to.sh + w * to.sw;
                    convert_run(src_type, s + a * ss, from.sw, dst_type, d + b * ds, to.sw, k, t, c);
                }
            }
}
