/* SPDX-License-Identifier: Apache-2.0
 * What the runtime says of inputs and outputs, and how their buffers are converted. See ports.c. */
#ifndef VIRTUAL_PORTS_H
#define VIRTUAL_PORTS_H

#include "convert.h"
#include "model.h"

typedef enum { VIEW_PLAIN, VIEW_NATIVE, VIEW_NATIVE_NHWC } view;

/* Fills in everything but `index`. */
void port_attr(const model *m, const port *p, uint32_t set, bool is_input, view v, rknn_tensor_attr *out);
/* Dimension `axis` of the shape as plain attributes report it: NHWC for 4-D inputs. */
uint32_t port_reported_dim(const model *m, const port *p, uint32_t set, bool is_input, uint32_t axis);

/* A caller's buffer: its element type, order of axes and w_stride (pixels, 0: none). `raw`: its values are the compiled
 * ones and are not converted. */
typedef struct {
    int32_t type, fmt;
    uint32_t w_stride;
    bool raw;
} buffer_form;

/* Bytes that a buffer of this form has at least; 0 for a form that the port cannot have. */
uint64_t form_bytes(const model *m, const port *p, uint32_t set, bool is_input, buffer_form f);
/* Between a caller's buffer and the stored tensor (compiled type, ONNX order). */
void form_read(const model *m, const port *p, uint32_t set, buffer_form f, const void *buffer, void *stored);
void form_write(const model *m, const port *p, uint32_t set, buffer_form f, const void *stored, void *buffer);

/* Between the stored tensor and a callback's (ONNX type and order). */
void port_to_onnx(const model *m, const port *p, uint32_t set, const void *stored, void *onnx);
void port_from_onnx(const model *m, const port *p, uint32_t set, const void *onnx, void *stored);

/* The pattern of rknn_virtual.h. */
uint64_t pattern_seed(uint64_t seed, uint32_t input, const void *bytes, uint64_t nbytes);
void pattern_fill(uint64_t seed, uint32_t output, int32_t type, void *stored, uint64_t elements);

#endif
