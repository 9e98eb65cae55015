/*
 * Time that passes faster: preloaded into a process, this library multiplies what its clocks say and divides how long it
 * waits. See modelled_time.py.
 *
 *   MODELLED_START           what the clocks since the machine's start say first, seconds
 *   modelled_go(speed)       so many modelled seconds in one second from now on; until then, one
 *   modelled_set_wall(t)     sets the wall clock, as NTP does
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>
#include <time.h>

#define SECOND 1000000000LL
/* Deadlines above this many seconds are the wall clock's: pthread_cond_timedwait does not say whose its deadline is. */
#define WALL 100000000LL

typedef struct timespec spec;
static int64_t speed = 1, first, began, wall_began;
static _Atomic int64_t wall_set;

static int (*real_gettime)(clockid_t, spec *);
static int (*real_nanosleep)(clockid_t, int, const spec *, spec *);
static int (*real_select)(int, fd_set *, fd_set *, fd_set *, struct timeval *);
static int (*real_poll)(struct pollfd *, nfds_t, int);
static int (*real_epoll)(int, struct epoll_event *, int, int);
static int (*real_sem)(sem_t *, clockid_t, const spec *);
static int (*real_cond)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const spec *);

static int64_t ns(const spec *t) { return t->tv_sec * SECOND + t->tv_nsec; }
static spec of(int64_t t) { return (spec){t / SECOND, t % SECOND}; }

static int64_t now(void) {
    spec t;
    real_gettime(CLOCK_MONOTONIC, &t);
    return ns(&t);
}

__attribute__((constructor)) static void begin(void) {
    if (began) return;
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_nanosleep = dlsym(RTLD_NEXT, "clock_nanosleep");
    real_select = dlsym(RTLD_NEXT, "select");
    real_poll = dlsym(RTLD_NEXT, "poll");
    real_epoll = dlsym(RTLD_NEXT, "epoll_wait");
    real_sem = dlsym(RTLD_NEXT, "sem_clockwait");
    real_cond = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    const char *start = getenv("MODELLED_START");
    first = (start ? atoll(start) : 0) * SECOND;
    spec t;
    real_gettime(CLOCK_REALTIME, &t);
    wall_began = ns(&t);
    began = now();
}

/* What has passed in the model, and when in truth a modelled deadline is over. */
static int64_t passed(void) {
    begin();
    return (now() - began) * speed;
}

static int64_t wall_base(void) {
    int64_t set = wall_set;
    return set ? set : wall_began;
}

static int64_t in_truth(const spec *deadline) {
    int64_t left = ns(deadline) - (deadline->tv_sec > WALL ? wall_base() : first) - passed();
    return now() + (left > 0 ? left / speed + 1 : 0);
}

/* Once, while no other thread of ours waits. */
void modelled_go(int64_t faster) {
    int64_t so_far = passed();
    first += so_far;
    wall_began += so_far;
    began = now();
    speed = faster;
}

void modelled_set_wall(int64_t seconds) { wall_set = seconds * SECOND - passed(); }

/* ---- clocks ---- */

static int64_t told(clockid_t clock) { return (clock == CLOCK_REALTIME ? wall_base() : first) + passed(); }

int clock_gettime(clockid_t clock, spec *t) {
    begin();
    if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC && clock != CLOCK_MONOTONIC_RAW && clock != CLOCK_BOOTTIME)
        return real_gettime(clock, t); /* processor time is what it is */
    *t = of(told(clock));
    return 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    (void)zone;
    spec at = of(told(CLOCK_REALTIME));
    *t = (struct timeval){at.tv_sec, at.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *t) {
    time_t at = told(CLOCK_REALTIME) / SECOND;
    if (t) *t = at;
    return at;
}

/* ---- waits ---- */

int clock_nanosleep(clockid_t clock, int flags, const spec *t, spec *left) {
    begin();
    int64_t until = flags & TIMER_ABSTIME ? in_truth(t) : now() + ns(t) / speed;
    spec at = of(until);
    int result = real_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    if (result && left && !(flags & TIMER_ABSTIME)) {
        int64_t more = (until - now()) * speed;
        *left = of(more > 0 ? more : 0);
    }
    (void)clock;
    return result;
}

int nanosleep(const spec *t, spec *left) { return clock_nanosleep(CLOCK_MONOTONIC, 0, t, left); }

int select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *limit) {
    begin();
    struct timeval less;
    if (limit) {
        int64_t us = (limit->tv_sec * 1000000LL + limit->tv_usec) / speed;
        less = (struct timeval){us / 1000000, us % 1000000};
    }
    return real_select(n, r, w, e, limit ? &less : NULL);
}

static int shorter(int ms) { return ms > 0 ? (int)(((int64_t)ms + speed - 1) / speed) : ms; }

int poll(struct pollfd *fds, nfds_t n, int ms) {
    begin();
    return real_poll(fds, n, shorter(ms));
}

int epoll_wait(int fd, struct epoll_event *events, int n, int ms) {
    begin();
    return real_epoll(fd, events, n, shorter(ms));
}

int sem_clockwait(sem_t *restrict sem, clockid_t clock, const spec *restrict deadline) {
    spec at = of(in_truth(deadline));
    (void)clock;
    return real_sem(sem, CLOCK_MONOTONIC, &at);
}

int sem_timedwait(sem_t *restrict sem, const spec *restrict deadline) {
    return sem_clockwait(sem, CLOCK_REALTIME, deadline);
}

int pthread_cond_clockwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const spec *restrict deadline) {
    spec at = of(in_truth(deadline));
    (void)clock;
    return real_cond(cond, mutex, CLOCK_MONOTONIC, &at);
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const spec *restrict deadline) {
    return pthread_cond_clockwait(cond, mutex, CLOCK_REALTIME, deadline);
}
