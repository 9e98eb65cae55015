/* SPDX-License-Identifier: Apache-2.0
 * Reading JSON and the literals of Python's repr: a cursor over bounded text, no recursion, no allocation. */
#ifndef VIRTUAL_LITERAL_H
#define VIRTUAL_LITERAL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *p, *end;
} literal;

/* Passes `c` (after white space), if it is there. */
bool literal_take(literal *l, char c);
/* Reads a string into `out` as UTF-8 with a zero at the end; `*length` is its true length, which may be >= cap (then
 * `out` holds its beginning). false: no well-formed string. */
bool literal_string(literal *l, char *out, size_t cap, size_t *length);
bool literal_number(literal *l, double *out);
/* Passes one value of any kind. false: not well-formed, or nested deeper than 32. */
bool literal_skip(literal *l);

#endif
