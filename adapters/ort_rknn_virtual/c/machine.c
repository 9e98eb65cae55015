/* SPDX-License-Identifier: Apache-2.0
 * The machine that is not there: SoC, clock, cores, faults, events, sums. */
#include "machine.h"
#include "literal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef VIRTUAL_SOC
#define VIRTUAL_SOC "rk3588"
#endif

enum { MAX_CORES = 3, MAX_FAULTS = 64, RING = 16384 };

sums_t sums;

static const char *const names[] = {
#define ONE(name) #name,
    FUNCTIONS(ONE)
#undef ONE
};

static char soc[16];
static uint32_t cores;
static char version[64] = "2.5.0";
static int log_fd = -1;
static double initial_run_ns;
static _Atomic double run_ns, factors[MAX_CORES], efficiency;
static atomic_bool follows;
static _Thread_local char message[256];

/* ---- settings ---- */

static void defaults(void) {
    run_ns = initial_run_ns;
    efficiency = 0.8;
    follows = false;
    for (int i = 0; i < MAX_CORES; i++) factors[i] = 1;
}

const char *soc_family(const char *name) {
    static const char *const rk3588[] = {"rk3588s", "rk3588s2", "rk3582"};
    for (size_t i = 0; i < sizeof rk3588 / sizeof *rk3588; i++)
        if (strcmp(name, rk3588[i]) == 0) return "rk3588";
    return name;
}

__attribute__((constructor)) static void load(void) {
    static const struct { const char *name; uint32_t cores; } known[] = {
        {"rk3588", 3}, {"rk3576", 2}, {"rk3566", 1}, {"rk3568", 1}, {"rk3562", 1}, {"rv1126b", 1}};
    const char *name = getenv("RKNN_VIRTUAL_SOC");
    if (!name || !*name) name = VIRTUAL_SOC;
    name = soc_family(name);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            snprintf(soc, sizeof soc, "%.15s", name);
            cores = known[i].cores;
        }
    const char *us = getenv("RKNN_VIRTUAL_RUN_US");
    if (us && *us) {
        literal l = {us, us + strlen(us)};
        double d;
        if (literal_number(&l, &d) && l.p == l.end && d >= 0 && d <= 1e9) initial_run_ns = d * 1000;
        else fprintf(stderr, "virtual NPU: RKNN_VIRTUAL_RUN_US=%.40s is not a number of microseconds\n", us);
    }
    const char *v = getenv("RKNN_VIRTUAL_VERSION");
    if (v && *v) snprintf(version, sizeof version, "%.63s", v);
    const char *path = getenv("RKNN_VIRTUAL_LOG");
    if (path && *path) {
        log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0) fprintf(stderr, "virtual NPU: cannot write RKNN_VIRTUAL_LOG=%.200s: %s\n", path, strerror(errno));
    }
    defaults();
}

__attribute__((destructor)) static void unload(void) {
    if (log_fd >= 0) close(log_fd);
    log_fd = -1;
}

const char *rknn_virtual_soc(void) { return soc; }
uint32_t rknn_virtual_cores(void) { return cores; }
uint32_t all_cores(void) { return (1u << cores) - 1; }
const char *runtime_version(void) { return version; }
bool attr_follows(void) { return follows; }

int rknn_virtual_set_run_time_us(double us) {
    if (!isfinite(us) || us < 0 || us > 1e9) return because(RKNN_BAD_PARAM, "a run takes 0 to 1e9 microseconds");
    run_ns = us * 1000;
    return RKNN_OK;
}

double rknn_virtual_run_time_us(void) { return run_ns / 1000; }

int rknn_virtual_set_core_factor(uint32_t core, double factor) {
    if (core >= cores || !isfinite(factor) || factor < 0 || factor > 1e6)
        return because(RKNN_BAD_PARAM, "no core %u, or a factor outside 0 to 1e6", core);
    factors[core] = factor;
    return RKNN_OK;
}

int rknn_virtual_set_tp_efficiency(double e) {
    if (!isfinite(e) || e <= 0 || e > 100) return because(RKNN_BAD_PARAM, "the efficiency is above 0, at most 100");
    efficiency = e;
    return RKNN_OK;
}

int rknn_virtual_set_attr_follows(int yes) {
    follows = yes != 0;
    return RKNN_OK;
}

/* ---- time ---- */

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void wait_until(uint64_t target) {
    /* A sleeping thread wakes 50 us late and more (timer slack), so the last stretch is waited out awake. */
    const uint64_t awake = 80000;
    uint64_t now = now_ns();
    if (target > now + awake) {
        uint64_t wake = target - awake;
        struct timespec t = {(time_t)(wake / 1000000000u), (long)(wake % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) continue;
    }
    while (now_ns() < target) continue;
}

uint64_t model_ns(uint32_t taken) {
    double slowest = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < cores; i++)
        if (taken & (1u << i)) {
            double f = factors[i];
            slowest = f > slowest ? f : slowest;
            n++;
        }
    return (uint64_t)(run_ns * slowest / (n > 1 ? n * efficiency : 1) + 0.5);
}

/* ---- cores ---- */

typedef struct waiter {
    struct waiter *next;
    pthread_cond_t wake;
    uint32_t mask, taken;
    uint64_t queued, start;
} waiter;

static pthread_mutex_t cores_lock = PTHREAD_MUTEX_INITIALIZER;
static waiter *queue_head, **queue_tail = &queue_head;
static uint32_t busy;
static uint64_t free_since[MAX_CORES];

/* What a waiter may take now: its whole mask, or for auto the idle core of the least number. */
static uint32_t fitting(uint32_t mask, uint32_t unavailable) {
    uint32_t idle = all_cores() & ~unavailable;
    if (mask == 0) return idle & (~idle + 1);
    return (mask & ~idle) == 0 ? mask : 0;
}

static uint64_t start_of(uint64_t queued, uint32_t taken) {
    uint64_t start = queued;
    for (uint32_t i = 0; i < cores; i++)
        if (taken & (1u << i) && free_since[i] > start) start = free_since[i];
    return start;
}

static void serve(void) {
    uint32_t reserved = 0;
    for (waiter **at = &queue_head; *at;) {
        waiter *w = *at;
        w->taken = fitting(w->mask, busy | reserved);
        if (w->taken) {
            busy |= w->taken;
            w->start = start_of(w->queued, w->taken);
            *at = w->next;
            pthread_cond_signal(&w->wake);
        } else {
            reserved |= w->mask;
            at = &w->next;
        }
    }
    queue_tail = &queue_head;
    while (*queue_tail) queue_tail = &(*queue_tail)->next;
}

uint32_t cores_take(uint32_t mask, uint64_t deadline, uint64_t *start) {
    uint64_t now = now_ns();
    mask = mask == 0xffff ? all_cores() : mask;
    pthread_mutex_lock(&cores_lock);
    uint32_t reserved = 0;
    for (waiter *w = queue_head; w; w = w->next) reserved |= w->mask ? w->mask : all_cores();
    uint32_t taken = fitting(mask, busy | reserved);
    if (taken) {
        busy |= taken;
        *start = start_of(now, taken);
        pthread_mutex_unlock(&cores_lock);
        return taken;
    }
    waiter me = {.mask = mask, .queued = now};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&me.wake, &attr);
    pthread_condattr_destroy(&attr);
    *queue_tail = &me;
    queue_tail = &me.next;
    serve(); /* a mask that waits for other cores than this one must not hold it up */
    struct timespec t = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};
    int late = 0;
    while (!me.taken && !late) {
        if (deadline) late = pthread_cond_timedwait(&me.wake, &cores_lock, &t) == ETIMEDOUT;
        else pthread_cond_wait(&me.wake, &cores_lock);
    }
    if (!me.taken) {
        waiter **at = &queue_head;
        while (*at != &me) at = &(*at)->next;
        *at = me.next;
        serve();
    }
    pthread_mutex_unlock(&cores_lock);
    pthread_cond_destroy(&me.wake);
    if (me.taken) *start = me.start;
    return me.taken;
}

void cores_give(uint32_t taken, uint64_t end, bool ran) {
    pthread_mutex_lock(&cores_lock);
    busy &= ~taken;
    for (uint32_t i = 0; i < cores; i++)
        if (taken & (1u << i)) free_since[i] = end;
    if (queue_head) serve();
    pthread_mutex_unlock(&cores_lock);
    for (uint32_t i = 0; ran && i < cores; i++)
        if (taken & (1u << i)) sums.runs[i]++;
}

/* ---- faults ---- */

static struct {
    int function, code;
    uint32_t after, times;
    bool forever;
    int64_t mask;
    rknn_context context;
} faults[MAX_FAULTS];
static atomic_int n_faults;
static pthread_mutex_t faults_lock = PTHREAD_MUTEX_INITIALIZER;

int rknn_virtual_fault(const char *function, int code, uint32_t after, uint32_t times, int64_t mask, rknn_context ctx) {
    int f = 0, result = RKNN_OK;
    if (function && strncmp(function, "rknn_", 5) == 0)
        for (int i = F_init; i < F_misuse; i++)
            if (strcmp(function + 5, names[i]) == 0) f = i;
    if (!f || code >= 0) return because(RKNN_BAD_PARAM, "no function %.60s, or a code that is no error", function ? function : "");
    pthread_mutex_lock(&faults_lock);
    int n = n_faults;
    if (n < MAX_FAULTS) {
        faults[n].function = f;
        faults[n].code = code;
        faults[n].after = after;
        faults[n].times = times;
        faults[n].forever = times == 0;
        faults[n].mask = mask;
        faults[n].context = ctx;
        n_faults = n + 1;
    } else result = RKNN_NO_MEMORY;
    pthread_mutex_unlock(&faults_lock);
    return result;
}

void rknn_virtual_clear_faults(void) {
    pthread_mutex_lock(&faults_lock);
    n_faults = 0;
    pthread_mutex_unlock(&faults_lock);
}

int fault_of(int function, uint32_t mask, rknn_context ctx) {
    if (atomic_load_explicit(&n_faults, memory_order_relaxed) == 0) return RKNN_OK;
    int code = RKNN_OK;
    pthread_mutex_lock(&faults_lock);
    for (int i = 0, n = n_faults; i < n && !code; i++) {
        if (faults[i].function != function || (faults[i].context && faults[i].context != ctx) ||
            (faults[i].mask >= 0 && faults[i].mask != (int64_t)mask))
            continue;
        if (faults[i].after) faults[i].after--;
        else if (faults[i].forever || faults[i].times) {
            if (!faults[i].forever) faults[i].times--;
            code = faults[i].code;
        }
    }
    pthread_mutex_unlock(&faults_lock);
    return code ? because(code, "a fault was set for rknn_%s", names[function]) : RKNN_OK;
}

/* ---- events ---- */

/* One lock: it costs some 20 ns where nobody else is writing, and a reader never sees half an event. */
static rknn_virtual_event ring[RING];
static uint64_t written;
static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;

static _Thread_local uint32_t this_thread;

void journal(rknn_virtual_event *e) {
    if (!this_thread) this_thread = (uint32_t)syscall(SYS_gettid);
    e->thread = this_thread;
    pthread_mutex_lock(&ring_lock);
    e->sequence = ++written;
    ring[(written - 1) % RING] = *e;
    pthread_mutex_unlock(&ring_lock);
    if (log_fd < 0) return;
    char line[320];
    int n = snprintf(line, sizeof line,
                     "%" PRIu64 " %s code=%d context=%#" PRIx64 " cores=%#x index=%u called=%" PRIu64 " start=%" PRIu64
                     " end=%" PRIu64 " address=%#" PRIx64 " nbytes=%" PRIu64 " thread=%u\n",
                     e->sequence, names[e->kind], e->code, e->context, e->core_mask, e->index, e->called, e->start,
                     e->end, e->address, e->nbytes, e->thread);
    if (write(log_fd, line, (size_t)n) < 0) return; /* a full disk does not stop the NPU */
}

uint32_t rknn_virtual_events(uint64_t since, rknn_virtual_event *out, uint32_t capacity) {
    uint32_t n = 0;
    pthread_mutex_lock(&ring_lock);
    uint64_t first = written > RING ? written - RING : 0;
    for (uint64_t i = since > first ? since : first; i < written && n < capacity; i++) out[n++] = ring[i % RING];
    pthread_mutex_unlock(&ring_lock);
    return n;
}

const char *rknn_virtual_kind(int32_t kind) { return kind >= 0 && kind < F_COUNT ? names[kind] : NULL; }

int because(int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (log_fd >= 0) {
        char line[320];
        int n = snprintf(line, sizeof line, "# (%d) %s\n", code, message);
        if (write(log_fd, line, (size_t)n) < 0) return code;
    }
    return code;
}

const char *rknn_virtual_message(void) { return message; }

/* ---- a forked child ---- */

/* The child's machine is a fresh one: the contexts, the callers that wait and the events are the parent's. The child's one
 * thread may be in the middle of nothing here, but the locks may be those of the parent's other threads. */
void machine_after_fork(void) {
    pthread_mutex_init(&cores_lock, NULL);
    pthread_mutex_init(&faults_lock, NULL);
    pthread_mutex_init(&ring_lock, NULL);
    queue_head = NULL;
    queue_tail = &queue_head;
    busy = 0;
    for (int i = 0; i < MAX_CORES; i++) free_since[i] = 0;
    written = 0;
    this_thread = 0;
    sums.contexts = sums.models = sums.weight_bytes = sums.mems = sums.outputs = sums.input_bytes = sums.misuses = 0;
    for (int i = 0; i < 8; i++) sums.runs[i] = 0;
}

/* ---- sums ---- */

void rknn_virtual_get_counters(rknn_virtual_counters *out) {
    memset(out, 0, sizeof *out);
    out->contexts = sums.contexts;
    out->models = sums.models;
    out->weight_bytes = sums.weight_bytes;
    out->mems = sums.mems;
    out->outputs = sums.outputs;
    out->input_bytes = sums.input_bytes;
    out->misuses = sums.misuses;
    for (int i = 0; i < 8; i++) out->runs[i] = sums.runs[i];
    pthread_mutex_lock(&ring_lock);
    out->events = written;
    pthread_mutex_unlock(&ring_lock);
}

void rknn_virtual_reset(void) {
    rknn_virtual_clear_faults();
    defaults();
    sums.input_bytes = 0;
    sums.misuses = 0;
    for (int i = 0; i < 8; i++) sums.runs[i] = 0;
    pthread_mutex_lock(&ring_lock);
    written = 0;
    pthread_mutex_unlock(&ring_lock);
}
