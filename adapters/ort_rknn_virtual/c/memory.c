/* SPDX-License-Identifier: Apache-2.0
 * rknn_create_mem and its kind: memory that a context knows, and what it is set as. The run reads and writes it. */
#include "context.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A dma-buf is mapped for the NPU on its own, so it stays when the program unmaps it and closes its descriptor. */
static int import(memory *b, int32_t fd, int32_t offset, uint64_t size) {
    struct stat s;
    if (fd < 0 || fstat(fd, &s)) return because(RKNN_BAD_PARAM, "file descriptor %d is not open", fd);
    if (offset < 0 || (uint64_t)offset + size > (uint64_t)s.st_size)
        return because(RKNN_BAD_PARAM, "bytes %d to %llu of a buffer of %lld", offset, (unsigned long long)offset + size, (long long)s.st_size);
    int way = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY ? PROT_READ : PROT_READ | PROT_WRITE;
    b->mapped = (uint64_t)offset + size;
    b->map = mmap(NULL, b->mapped, way, MAP_SHARED, fd, 0);
    if (b->map == MAP_FAILED) {
        b->map = NULL;
        return because(RKNN_NO_MEMORY, "file descriptor %d cannot be mapped", fd);
    }
    b->at = (uint8_t *)b->map + offset;
    b->writable = way & PROT_WRITE;
    return RKNN_OK;
}

void free_memory(memory *b) {
    if (b->map) munmap(b->map, b->mapped);
    free(b->own);
    free(b);
    sums.mems--;
}

int32_t rknn_virtual_dmabuf(uint64_t size) {
    call k;
    memset(&k, 0, sizeof k);
    k.e.called = k.e.start = now_ns();
    k.e.kind = F_virtual_dmabuf;
    k.e.nbytes = size;
    int code = fault_of(F_virtual_dmabuf, 0, 0), fd = -1;
    if (code == RKNN_OK && (size == 0 || size > INT64_MAX)) code = RKNN_BAD_PARAM;
    if (code == RKNN_OK && ((fd = memfd_create("virtual dma-buf", MFD_CLOEXEC)) < 0 || ftruncate(fd, (off_t)size))) {
        if (fd >= 0) close(fd);
        code = because(RKNN_NO_MEMORY, "no buffer of %llu bytes", (unsigned long long)size);
    }
    leave(&k, code);
    return code ? code : fd;
}

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
    if (b && function == F_create_mem_from_fd && (code = import(b, fd, offset, size))) {
        free(b);
        b = NULL;
    }
    if (b) {
        if (own) memset(b->own, 0, size);
        if (!b->map) b->at = own ? b->own : at;
        b->size = size;
        b->face = (rknn_tensor_mem){own ? b->own : at, phys, fd, offset, (uint32_t)size, 0, NULL};
        b->next = k.c->memories;
        k.c->memories = b;
        sums.mems++;
        k.e.address = (uintptr_t)b->face.virt_addr;
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

static void unbind(port_state *s, const memory *b) {
    if (s->bound != b) return;
    s->bound = NULL;
    s->dangling = true; /* a run would use memory that is gone */
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
            for (uint32_t i = 0; i < c->model->m->n_in; i++) unbind(&c->in[i], b);
            for (uint32_t i = 0; i < c->model->m->n_out; i++) unbind(&c->out[i], b);
            k.e.address = (uintptr_t)b->face.virt_addr;
            free_memory(b);
        } else code = RKNN_BAD_PARAM;
    }
    return leave(&k, code);
}

enum { SYNC_TO_DEVICE = 1, SYNC_FROM_DEVICE = 2 };

RKNN_API int rknn_mem_sync(rknn_context handle, rknn_tensor_mem *mem, int mode) {
    call k;
    int code = enter(&k, F_mem_sync, handle);
    memory *b = code == RKNN_OK ? find_memory(k.c, mem) : NULL;
    if (code == RKNN_OK && (!b || mode < SYNC_TO_DEVICE || mode > (SYNC_TO_DEVICE | SYNC_FROM_DEVICE))) code = RKNN_BAD_PARAM;
    if (code == RKNN_OK) {
        k.e.address = (uintptr_t)b->face.virt_addr;
        k.e.index = (uint32_t)mode;
        if (mode & SYNC_TO_DEVICE) b->synced = true;
        if (mode & SYNC_FROM_DEVICE) fetch_outputs(k.c, b);
    }
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
    if (!is_input && b->map && !b->writable) return because(RKNN_BAD_PARAM, "%s would be written to memory that is read-only", p->name);
    s->bound = b;
    s->form = f;
    s->dangling = s->unseen = false;
    return RKNN_OK;
}

RKNN_API int rknn_set_io_mem(rknn_context handle, rknn_tensor_mem *mem, rknn_tensor_attr *a) {
    call k;
    int code = enter(&k, F_set_io_mem, handle);
    if (code == RKNN_OK) code = set_io_mem(k.c, mem, a);
    if (code == RKNN_OK) {
        k.e.address = (uintptr_t)mem->virt_addr;
        k.e.nbytes = mem->size;
        k.e.index = a->index;
    }
    return leave(&k, code);
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
