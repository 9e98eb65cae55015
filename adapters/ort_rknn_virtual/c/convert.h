/* SPDX-License-Identifier: Apache-2.0
 * Conversion of tensors between element types and orders of axes. See convert.c. */
#ifndef VIRTUAL_CONVERT_H
#define VIRTUAL_CONVERT_H

#include <stdbool.h>
#include "rknn_virtual.h"

/* A tensor as N x C x H x W; fewer or more dimensions are folded: (d0, d1, 1, the rest). */
typedef struct {
    size_t n, c, h, w;
} extents;

/* Where an element lies: n*sn + (c / block)*sc1 + (c % block)*sc2 + h*sh + w*sw, in elements. */
typedef struct {
    size_t sn, sc1, sc2, sh, sw, block;
} layout;

/* What happens to a value between source and destination, in this order; a scale of 0 and n_mean of 0 mean "not". */
typedef struct {
    float src_scale;
    int32_t src_zp;
    const float *mean, *std; /* one, or one per channel */
    uint32_t n_mean;
    float dst_scale;
    int32_t dst_zp;
} transform;

/* Bytes of an element; 0 for a type that is not known. */
size_t type_size(int32_t type);

extents extents_of(uint32_t n_dims, const uint32_t *dims);
layout layout_nchw(extents e);
layout layout_nhwc(extents e, size_t w_stride); /* w_stride in pixels; 0: w */
layout layout_blocks(extents e, size_t c1, size_t c2);
/* Elements from the first to one past the last that a layout touches. */
size_t layout_span(extents e, layout l);

void convert(extents e, int32_t src_type, const void *src, layout from, int32_t dst_type, void *dst, layout to,
             const transform *t);

/* float16 and bfloat16 bits of a float32, rounded to nearest, ties to even. */
uint16_t half_of(float value);
uint16_t bfloat_of(float value);

#endif
