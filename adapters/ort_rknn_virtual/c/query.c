/* SPDX-License-Identifier: Apache-2.0
 * rknn_query: what a context says of its model, its memory and its last run. */
#include "context.h"

#include <stdio.h>
#include <string.h>

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

void mem_query(context *c, rknn_mem_size *out) {
    model *m = c->model->m;
    uint64_t internal = 0;
    for (uint32_t i = 0; i < m->n_in; i++) internal += port_elements(m, &m->in[i], 0) * type_size(m->in[i].type);
    for (uint32_t i = 0; i < m->n_out; i++) internal += port_elements(m, &m->out[i], 0) * type_size(m->out[i].type);
    memset(out, 0, sizeof *out);
    out->total_weight_size = c->weights->bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)c->weights->bytes;
    out->total_internal_size = internal > UINT32_MAX ? UINT32_MAX : (uint32_t)internal;
    out->total_dma_allocated_size = c->weights->bytes + internal;
}

/* The operators are not modelled: one layer stands for them all. The text lives until the next question. */
static int detail_query(context *c, rknn_perf_detail *out) {
    static _Thread_local char text[8192];
    model *m = c->model->m;
    if (!(c->flags & FLAG_COLLECT_PERF)) return because(RKNN_FAIL, "layers are measured with the flag 0x8 only");
    if (!c->ran) return because(RKNN_FAIL, "nothing has run yet");
    size_t at = 0;
    uint32_t id = 1;
#define LINE(...) do { \
        int n = snprintf(text + at, sizeof text - at, __VA_ARGS__); \
        if (n > 0 && (size_t)n < sizeof text - at) at += (size_t)n; \
    } while (0)
    LINE("%-4s %-16s %-8s %-6s %-12s %-12s %-22s %-11s %-11s %-20s %-8s %s\n", "ID", "OpType", "DataType", "Target", "InputShape",
         "OutputShape", "Cycles(DDR/NPU/Total)", "Time(us)", "MacUsage(%)", "WorkLoad(0/1/2)", "RW(KB)", "FullName");
    for (uint32_t i = 0; i < m->n_in; i++)
        LINE("%-4u %-16s %-8s %-6s %-12s %-12s %-22s %-11u %-11s %-20s %-8u InputOperator:%.*s\n", id++, "InputOperator", "FLOAT16",
             "CPU", "\\", "\\", "0/0/0", 1u, "", "0.0%/0.0%/0.0%", 0u, (int)m->in[i].name_length, m->in[i].name);
    LINE("%-4u %-16s %-8s %-6s %-12s %-12s %-22s %-11llu %-11s %-20s %-8u Virtual:model\n", id++, "Virtual", "FLOAT16", "NPU", "\\",
         "\\", "0/0/0", (unsigned long long)(c->run_ns / 1000), "", "100.0%/0.0%/0.0%", 0u);
    for (uint32_t i = 0; i < m->n_out; i++)
        LINE("%-4u %-16s %-8s %-6s %-12s %-12s %-22s %-11u %-11s %-20s %-8u OutputOperator:%.*s\n", id++, "OutputOperator", "FLOAT16",
             "CPU", "\\", "\\", "0/0/0", 2u, "", "0.0%/0.0%/0.0%", 0u, (int)m->out[i].name_length, m->out[i].name);
    LINE("Total Operator Elapsed Per Frame Time(us): %llu\n", (unsigned long long)(c->run_ns / 1000 + m->n_in + 2 * m->n_out));
#undef LINE
    out->perf_data = text;
    out->data_len = at;
    return RKNN_OK;
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
    case QUERY_PERF_DETAIL: return detail_query(c, info);
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
