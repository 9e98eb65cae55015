/* SPDX-License-Identifier: Apache-2.0
 * A .rknn file, read: signature, quantization, shape sets, target. See model.c. */
#ifndef VIRTUAL_MODEL_H
#define VIRTUAL_MODEL_H

#include <stdbool.h>
#include "rknn_virtual.h"

/* A port's shape in one shape set. `dims` is in the ONNX's order of axes, without the batch factor. */
typedef struct {
    uint32_t dims[RKNN_DIMS];
    uint32_t native[RKNN_DIMS], native_n; /* as the NPU stores it: N, C1, H, W, C2 where there are 5 */
    uint32_t native_bytes;
    uint32_t w_align;                     /* in pixels; 0 or 1: none */
} port_shape;

typedef struct {
    char *name;
    uint32_t name_length;
    int32_t type;      /* compiled */
    int32_t onnx_type; /* of the ONNX */
    bool quantized;
    float scale;
    int32_t zp;
    uint32_t n_dims;
    float *mean, *std; /* n_mean each, or n_mean == 0; n_std is as read until then */
    uint32_t n_mean, n_std;
    port_shape *shapes; /* one per set */
} port;

typedef struct {
    uint32_t n_in, n_out, n_sets, batch; /* batch >= 1 multiplies dimension 0 */
    bool dynamic;
    port *in, *out;
    char custom[RKNN_CUSTOM];
    char target[32];
    uint64_t weight_bytes;
} model;

/* Reads a model; 0, -4 or -6 (then `why` is filled with words). The bytes are not needed afterwards. */
int model_read(const uint8_t *bytes, uint64_t size, model **out, char why[160]);
void model_free(model *m);

/* Number of elements in a set, with the batch factor. Bounded when the model is read. */
uint64_t port_elements(const model *m, const port *p, uint32_t set);
/* Dimension `axis` (ONNX order) in a set, with the batch factor. */
uint32_t port_dim(const model *m, const port *p, uint32_t set, uint32_t axis);

#endif
