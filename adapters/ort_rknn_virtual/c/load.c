/* SPDX-License-Identifier: Apache-2.0
 * rknn_init: a model from memory or a file, its weights or another context's, and a context for them. */
#include "context.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_MODEL_BYTES (UINT64_C(8) << 30)

static int read_file(const char *path, const rknn_init_extend *extend, uint8_t **bytes, uint64_t *size) {
    struct stat st;
    *bytes = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return because(RKNN_FAIL, "cannot open the model %.120s: %s", path, strerror(errno));
    int code = RKNN_OK;
    uint64_t from = 0;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) code = because(RKNN_FAIL, "the model %.120s is not a file", path);
    else {
        *size = (uint64_t)st.st_size;
        if (extend && extend->real_model_size) {
            from = extend->real_model_offset < 0 ? UINT64_MAX : (uint64_t)extend->real_model_offset;
            if (from > *size || extend->real_model_size > *size - from)
                code = because(RKNN_BAD_PARAM, "real_model_offset and real_model_size reach past the file's end");
            *size = extend->real_model_size;
        }
        if (!code && (*size < 8 || *size > MAX_MODEL_BYTES)) code = because(RKNN_BAD_MODEL, "the file is empty or too large");
        if (!code && !(*bytes = malloc(*size))) code = RKNN_NO_MEMORY;
    }
    for (uint64_t done = 0; !code && done < *size;) {
        ssize_t n = pread(fd, *bytes + done, *size - done, (off_t)(from + done));
        if (n > 0) done += (uint64_t)n;
        else if (n == 0 || errno != EINTR) code = because(RKNN_FAIL, "cannot read the model %.120s", path);
    }
    close(fd);
    if (code) {
        free(*bytes);
        *bytes = NULL;
    }
    return code;
}

/* rk3588 and its variants are one; rk3566 and rk3568 are not. */
static bool same_soc(const char *target) {
    return strcmp(soc_family(target), rknn_virtual_soc()) == 0;
}

/* The weights of another context, for the flag 0x20. */
static weights *shared_weights(rknn_context handle) {
    call k;
    weights *w = NULL;
    if (enter(&k, F_none, handle) == RKNN_OK) {
        w = k.c->weights;
        w->refs++;
        k.quiet = true;
    }
    leave(&k, w ? RKNN_OK : RKNN_BAD_CONTEXT);
    return w;
}

static int init(call *k, rknn_context *out, const void *given, uint32_t size, uint32_t flags,
                const rknn_init_extend *extend) {
    char why[160];
    uint8_t *file = NULL;
    const uint8_t *bytes = given;
    uint64_t length = size;
    if (!out || !given) return because(RKNN_BAD_PARAM, "no place for the context, or no model");
    *out = 0;
    if (!rknn_virtual_cores()) return because(RKNN_NO_DEVICE, "RKNN_VIRTUAL_SOC names a SoC that is not known");
    if (size == 0) {
        int code = read_file(given, extend, &file, &length);
        if (code) return code;
        bytes = file;
    }
    k->e.nbytes = length;
    k->e.index = flags;
    model *m;
    int code = model_read(bytes, length, &m, why);
    free(file);
    if (code) return because(code, "the model is damaged: %s", code == RKNN_BAD_MODEL ? why : "no memory for it");
    if (!same_soc(m->target)) {
        code = because(RKNN_BAD_TARGET, "the model is for %s, this is an %s", m->target, rknn_virtual_soc());
        model_free(m);
        return code;
    }
    shared_model *s = calloc(1, sizeof *s);
    weights *w = NULL;
    if (flags & FLAG_SHARE_WEIGHTS) {
        if (!(w = extend ? shared_weights(extend->ctx) : NULL))
            code = because(RKNN_BAD_PARAM, "the flag for shared weights needs a live context in the extend structure");
    } else if ((w = calloc(1, sizeof *w))) {
        w->refs = 1;
        w->bytes = flags & FLAG_INFO_ONLY ? 0 : m->weight_bytes;
        sums.weight_bytes += w->bytes;
    }
    if (!s || !w) {
        if (w) release_weights(w);
        free(s);
        model_free(m);
        return code ? code : RKNN_NO_MEMORY;
    }
    s->refs = 1;
    s->m = m;
    sums.models++;
    if ((code = make_context(s, w, k))) return code;
    k->c->flags = flags;
    *out = k->e.context;
    return RKNN_OK;
}

RKNN_API int rknn_init(rknn_context *out, void *given, uint32_t size, uint32_t flags, rknn_init_extend *extend) {
    call k;
    int code = enter(&k, F_init, 0);
    return leave(&k, code ? code : init(&k, out, given, size, flags, extend));
}
