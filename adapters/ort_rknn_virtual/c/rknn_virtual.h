/* SPDX-License-Identifier: Apache-2.0
 *
 * The virtual NPU: control functions, beside the rknn_* functions that it implements as librknnrt would.
 *
 * WHAT IT IS. A library that reads .rknn files, gives contexts, converts inputs and outputs, and keeps NPU cores busy
 * for a modelled time. It does not execute the NPU program in the file: numbers come from a compute callback, or,
 * without one, from the pattern below.
 *
 * ENVIRONMENT, read once when the library is loaded.
 *   RKNN_VIRTUAL_SOC      rk3588 (3 cores), rk3576 (2), rk3566, rk3568, rk3562, rv1126b (1); else what it was compiled for.
 *                         An unknown name makes every rknn_init answer -3.
 *   RKNN_VIRTUAL_RUN_US   modelled time of one run on one core, microseconds, decimal. Default 0.
 *   RKNN_VIRTUAL_LOG      a file that gets one line per event ("# ..." lines are explanations); appended to.
 *   RKNN_VIRTUAL_VERSION  what rknn_query says as the runtime's version. Default "2.5.0".
 *
 * CORES. A run holds its cores from when it gets them until its modelled time is over; waiting runs are served in the
 * order of their coming, and a run that waits for several cores keeps later ones off them. Mask 0 (auto) takes the
 * idle core of the least number; when all are busy, the first that becomes idle. Modelled time = run time x factor of
 * the core (of the slowest, where there are several) / speed-up, with speed-up = number of cores x efficiency for more
 * than one core (default efficiency 0.8), 1 for one. A compute callback's duration counts inside the modelled time.
 * Masks: 1, 2, 4, 3, 7, 0xffff (all cores of the SoC) and 0; other numbers are -5, a core that the SoC lacks is -13,
 * and on a one-core SoC every rknn_set_core_mask is -13, as on the board.
 *
 * INPUTS are converted in rknn_inputs_set to the compiled type: (x - mean) / std by channel, then rounded to float16
 * (to nearest, ties to even; overflow gives infinity) or quantized: round(x / scale) + zero point, ties to even,
 * clamped. With pass_through they are taken as the compiled type in the reported order of axes. All inputs of a run
 * must have been set (-8). After a failed run there are no outputs to get (-1). A dynamic model begins with its first
 * (largest) set; plain attributes stay at that set and "current" ones follow, unless rknn_virtual_set_attr_follows(1).
 *
 * THE PATTERN. Without a callback, outputs are a function of all input bytes, of the input's and output's index and of
 * the element's index. All arithmetic modulo 2^64; G = 0x9E3779B97F4A7C15.
 *   mix(x):  x ^= x >> 32; x *= 0xD6E8FEB86659FD93; x ^= x >> 32; x *= 0xD6E8FEB86659FD93; x ^= x >> 32
 *   input k: its bytes in the compiled type and the ONNX's order of axes, padded with zeros to a multiple of 8, as
 *            little-endian words w[0..];  sum(k) = sum of w[i] * (2 i + 1);
 *            seed = sum over k of mix(sum(k) + (k + 1) * G + number of bytes)
 *   output j, element i:  t = mix(seed + (j + 1) * G) + i * G;  u = t >> 53  (0 ... 2047)
 *            stored value: float types (u - 1024) / 1024; 8-bit integers: the low 8 bits of u; bool: u & 1;
 *            other integers: u. Quantized outputs are dequantized from that stored value.
 *
 * MISUSE. A context that does not exist (any more) is -7; a context that another thread is using at the moment is -1.
 * Both are an event of kind "misuse". A context's outputs and memory that were not given back are freed with it.
 * Not modelled: asynchronous runs (rknn_run always blocks), performance details, device memory information (-1),
 * custom operators (-1), 4-bit tensors (-6), file descriptors of rknn_create_mem (fd is -1).
 *
 * MEMORY. rknn_create_mem_from_fd maps the buffer once more, as an NPU does: the program may unmap it and close its
 * descriptor. A descriptor that is not open, or a buffer that is too small, is NULL. Caches are modelled for such memory
 * only: an input that was not synchronized to the device since the last run is read as it was before and is a misuse; an
 * output appears in the buffer with the rknn_mem_sync from the device that follows the run. A run of which an input or
 * output is bound to memory that was destroyed is a misuse and fails (-1).
 */
#ifndef RKNN_VIRTUAL_H
#define RKNN_VIRTUAL_H

#include "rknn_abi.h"

/* Element types of callback tensors: those of the runtime, and two that only ONNX has. */
enum { TYPE_FLOAT64 = 32, TYPE_UINT64 = 33 };

/* One tensor of a computation: the ONNX's own element type and order of axes, C-contiguous. `data` is readable (in)
 * or to be filled (out) during the call only. */
typedef struct {
    const char *name;
    int32_t type;
    uint32_t n_dims;
    uint32_t dims[RKNN_DIMS];
    void *data;
    uint64_t nbytes;
} rknn_virtual_tensor;
_Static_assert(sizeof(rknn_virtual_tensor) == 96, "rknn_virtual_tensor");

/* Computes one run. Returns 0 or a negative RKNN code, which rknn_run then returns. Called on the thread of rknn_run. */
typedef int (*rknn_virtual_compute)(void *user, uint32_t n_in, const rknn_virtual_tensor *in, uint32_t n_out,
                                    rknn_virtual_tensor *out);

/* As `user`: the callback gets a number from 1 on instead, another one in every run, and returns that for success. For
 * callbacks whose language cannot promise that a call which did not happen returns nothing (ctypes). */
#define RKNN_VIRTUAL_TICKET ((void *)(intptr_t)-1)

/* Sets (or with NULL removes) a context's callback; contexts duplicated from it later inherit it. 0, -1 or -7. */
RKNN_API int rknn_virtual_set_compute(rknn_context context, rknn_virtual_compute compute, void *user);

/* The SoC's name and number of cores ("" and 0 where RKNN_VIRTUAL_SOC was not understood). */
RKNN_API const char *rknn_virtual_soc(void);
RKNN_API uint32_t rknn_virtual_cores(void);

/* Modelled time. -5 for a negative or not finite number, or a core that is not there. */
RKNN_API int rknn_virtual_set_run_time_us(double us);
RKNN_API double rknn_virtual_run_time_us(void);
RKNN_API int rknn_virtual_set_core_factor(uint32_t core, double factor);
RKNN_API int rknn_virtual_set_tp_efficiency(double efficiency);

/* Whether plain input/output attributes follow the current shape set (default 0: they do not). */
RKNN_API int rknn_virtual_set_attr_follows(int follows);

/* A buffer of this many bytes that stands for a dma-buf (a memfd); its descriptor, which the caller closes, or a negative
 * code. Faults of it are set with the function name "rknn_virtual_dmabuf". */
RKNN_API int32_t rknn_virtual_dmabuf(uint64_t size);

/* Faults: calls of `function` ("rknn_run") answer `code` (pointer functions: NULL) and do nothing else. The first `after`
 * matching calls pass, the next `times` fail (0: all). `core_mask` -1: any, else the mask that the context was set to;
 * `context` 0: any. Returns 0, -5 for an unknown function or a code >= 0, -4 when 64 faults are set. */
RKNN_API int rknn_virtual_fault(const char *function, int code, uint32_t after, uint32_t times, int64_t core_mask,
                                rknn_context context);
RKNN_API void rknn_virtual_clear_faults(void);

/* Events: one per call (rknn_inputs_set: one per input), the last 16,384 are kept. Times are CLOCK_MONOTONIC
 * nanoseconds; `start` and `end` of a run are when it got and gave back its cores, else `start` is `called`. */
typedef struct {
    uint64_t sequence; /* from 1 */
    uint64_t called, start, end;
    uint64_t context;
    uint64_t address;   /* rknn_inputs_set: the caller's buffer; functions of memory: its virt_addr */
    uint64_t nbytes;    /* rknn_inputs_set, memory: its size as given; rknn_init: the model's */
    int32_t kind;       /* see rknn_virtual_kind */
    int32_t code;       /* what the call returned */
    uint32_t core_mask; /* run: the cores really used; else what the context is set to */
    uint32_t index;     /* inputs_set, set_io_mem: the port; query: the command; mem_sync: the mode; init: the flags;
                         * misuse: the kind of the call */
    uint32_t thread;
    uint32_t reserved;
} rknn_virtual_event;
_Static_assert(sizeof(rknn_virtual_event) == 80, "rknn_virtual_event");

/* Copies the kept events with sequence > since, oldest first, at most `capacity`; returns their number. */
RKNN_API uint32_t rknn_virtual_events(uint64_t since, rknn_virtual_event *out, uint32_t capacity);
/* The name of a kind ("run", "inputs_set", "misuse" ...), NULL past the last. */
RKNN_API const char *rknn_virtual_kind(int32_t kind);
/* Why the last call on this thread that did not return 0 failed, in words; "" if unknown. Valid until the next one. */
RKNN_API const char *rknn_virtual_message(void);

typedef struct {
    uint64_t contexts, models, weight_bytes, mems, outputs;  /* alive now; weights of a model once, however often dup */
    uint64_t input_bytes;                                    /* converted by rknn_inputs_set since load or reset */
    uint64_t misuses, events;                                /* since load or reset */
    uint64_t runs[8];                                        /* per core, since load or reset */
} rknn_virtual_counters;
_Static_assert(sizeof(rknn_virtual_counters) == 128, "rknn_virtual_counters");

RKNN_API void rknn_virtual_get_counters(rknn_virtual_counters *out);

/* Forgets faults, events and sums, and sets times, factors and switches as they were after loading. What is alive stays. */
RKNN_API void rknn_virtual_reset(void);

#endif
