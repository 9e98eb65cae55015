/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface that programs of librknnrt speak, 64-bit Linux: structures and constants, written from their sizes and
 * offsets. The assertions at the end are the specification; the field names are ours where the field is unused here.
 */
#ifndef RKNN_ABI_H
#define RKNN_ABI_H

#include <stddef.h>
#include <stdint.h>

#define RKNN_API __attribute__((visibility("default")))

typedef uint64_t rknn_context;

enum { RKNN_DIMS = 16, RKNN_NAME = 256, RKNN_SETS = 512, RKNN_CUSTOM = 1024 };

enum {
    RKNN_OK = 0,
    RKNN_FAIL = -1,
    RKNN_TIMEOUT = -2,
    RKNN_NO_DEVICE = -3,
    RKNN_NO_MEMORY = -4,
    RKNN_BAD_PARAM = -5,
    RKNN_BAD_MODEL = -6,
    RKNN_BAD_CONTEXT = -7,
    RKNN_BAD_INPUT = -8,
    RKNN_BAD_OUTPUT = -9,
    RKNN_BAD_TARGET = -13
};

enum {
    TYPE_FLOAT32, TYPE_FLOAT16, TYPE_INT8, TYPE_UINT8, TYPE_INT16, TYPE_UINT16, TYPE_INT32, TYPE_UINT32, TYPE_INT64,
    TYPE_BOOL, TYPE_INT4, TYPE_BFLOAT16
};
enum { QNT_NONE, QNT_DFP, QNT_AFFINE };
enum { FMT_NCHW, FMT_NHWC, FMT_NC1HWC2, FMT_UNDEFINED };
enum {
    QUERY_IN_OUT_NUM, QUERY_INPUT_ATTR, QUERY_OUTPUT_ATTR, QUERY_PERF_DETAIL, QUERY_PERF_RUN, QUERY_SDK_VERSION,
    QUERY_MEM_SIZE, QUERY_CUSTOM_STRING, QUERY_NATIVE_INPUT_ATTR, QUERY_NATIVE_OUTPUT_ATTR,
    QUERY_NATIVE_NHWC_INPUT_ATTR, QUERY_NATIVE_NHWC_OUTPUT_ATTR, QUERY_DEVICE_MEM_INFO, QUERY_INPUT_DYNAMIC_RANGE,
    QUERY_CURRENT_INPUT_ATTR, QUERY_CURRENT_OUTPUT_ATTR, QUERY_CURRENT_NATIVE_INPUT_ATTR,
    QUERY_CURRENT_NATIVE_OUTPUT_ATTR
};
enum { FLAG_COLLECT_PERF = 0x8, FLAG_SHARE_WEIGHTS = 0x20, FLAG_INFO_ONLY = 0x100 };

typedef struct {
    uint32_t n_input, n_output;
} rknn_input_output_num;

typedef struct {
    uint32_t index, n_dims, dims[RKNN_DIMS];
    char name[RKNN_NAME];
    uint32_t n_elems, size;
    int32_t fmt, type, qnt_type;
    int8_t fl;
    int32_t zp;
    float scale;
    uint32_t w_stride, size_with_stride;
    uint8_t pass_through;
    uint32_t h_stride;
} rknn_tensor_attr;

typedef struct {
    uint32_t index, shape_number;
    int32_t fmt;
    char name[RKNN_NAME];
    uint32_t dyn_range[RKNN_SETS][RKNN_DIMS];
    uint32_t n_dims;
} rknn_input_range;

typedef struct {
    char *perf_data;
    uint64_t data_len;
} rknn_perf_detail;

typedef struct {
    int64_t run_duration;
} rknn_perf_run;

typedef struct {
    char api_version[256], drv_version[256];
} rknn_sdk_version;

typedef struct {
    uint32_t total_weight_size, total_internal_size;
    uint64_t total_dma_allocated_size;
    uint32_t total_sram_size, free_sram_size, reserved[10];
} rknn_mem_size;

typedef struct {
    char string[RKNN_CUSTOM];
} rknn_custom_string;

typedef struct {
    void *virt_addr;
    uint64_t phys_addr;
    int32_t fd, offset;
    uint32_t size, flags;
    void *priv_data;
} rknn_tensor_mem;

typedef struct {
    uint32_t index;
    void *buf;
    uint32_t size;
    uint8_t pass_through;
    int32_t type, fmt;
} rknn_input;

typedef struct {
    uint8_t want_float, is_prealloc;
    uint32_t index;
    void *buf;
    uint32_t size;
} rknn_output;

typedef struct {
    rknn_context ctx;
    int32_t real_model_offset;
    uint32_t real_model_size;
    int32_t model_buffer_fd;
    uint32_t model_buffer_flags;
    uint8_t reserved[112];
} rknn_init_extend;

typedef struct {
    uint64_t frame_id;
    int32_t non_block, timeout_ms, fence_fd;
} rknn_run_extend;

typedef struct {
    uint64_t frame_id;
} rknn_output_extend;

_Static_assert(sizeof(void *) == 8, "64-bit only");
_Static_assert(sizeof(rknn_input_output_num) == 8, "rknn_input_output_num");
_Static_assert(sizeof(rknn_tensor_attr) == 376, "rknn_tensor_attr");
_Static_assert(offsetof(rknn_tensor_attr, dims) == 8 && offsetof(rknn_tensor_attr, name) == 72 &&
               offsetof(rknn_tensor_attr, n_elems) == 328 && offsetof(rknn_tensor_attr, size) == 332 &&
               offsetof(rknn_tensor_attr, fmt) == 336 && offsetof(rknn_tensor_attr, type) == 340 &&
               offsetof(rknn_tensor_attr, qnt_type) == 344 && offsetof(rknn_tensor_attr, fl) == 348 &&
               offsetof(rknn_tensor_attr, zp) == 352 && offsetof(rknn_tensor_attr, scale) == 356 &&
               offsetof(rknn_tensor_attr, w_stride) == 360 && offsetof(rknn_tensor_attr, size_with_stride) == 364 &&
               offsetof(rknn_tensor_attr, pass_through) == 368 && offsetof(rknn_tensor_attr, h_stride) == 372,
               "rknn_tensor_attr");
_Static_assert(sizeof(rknn_input_range) == 33040 && offsetof(rknn_input_range, name) == 12 &&
               offsetof(rknn_input_range, dyn_range) == 268 && offsetof(rknn_input_range, n_dims) == 33036,
               "rknn_input_range");
_Static_assert(sizeof(rknn_perf_detail) == 16 && sizeof(rknn_perf_run) == 8 && sizeof(rknn_sdk_version) == 512 && sizeof(rknn_mem_size) == 64 &&
               sizeof(rknn_custom_string) == 1024, "query structures");
_Static_assert(offsetof(rknn_mem_size, total_dma_allocated_size) == 8 &&
               offsetof(rknn_mem_size, total_sram_size) == 16, "rknn_mem_size");
_Static_assert(sizeof(rknn_tensor_mem) == 40 && offsetof(rknn_tensor_mem, fd) == 16 &&
               offsetof(rknn_tensor_mem, size) == 24 && offsetof(rknn_tensor_mem, priv_data) == 32,
               "rknn_tensor_mem");
_Static_assert(sizeof(rknn_input) == 32 && offsetof(rknn_input, buf) == 8 && offsetof(rknn_input, size) == 16 &&
               offsetof(rknn_input, pass_through) == 20 && offsetof(rknn_input, type) == 24 &&
               offsetof(rknn_input, fmt) == 28, "rknn_input");
_Static_assert(sizeof(rknn_output) == 24 && offsetof(rknn_output, is_prealloc) == 1 &&
               offsetof(rknn_output, index) == 4 && offsetof(rknn_output, buf) == 8 &&
               offsetof(rknn_output, size) == 16, "rknn_output");
_Static_assert(sizeof(rknn_init_extend) == 136 && offsetof(rknn_init_extend, real_model_offset) == 8 &&
               offsetof(rknn_init_extend, real_model_size) == 12, "rknn_init_extend");
_Static_assert(sizeof(rknn_run_extend) == 24 && offsetof(rknn_run_extend, non_block) == 8 &&
               offsetof(rknn_run_extend, timeout_ms) == 12, "rknn_run_extend");
_Static_assert(sizeof(rknn_output_extend) == 8, "rknn_output_extend");

#endif
