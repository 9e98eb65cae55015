/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON and Python's repr have so much in common that one reader serves both. Numbers are read here and not by strtod,
 * which follows the locale of the host program.
 */
#include "literal.h"

#include <math.h>
#include <stdint.h>

static void blank(literal *l) {
    while (l->p < l->end && (*l->p == ' ' || *l->p == '\n' || *l->p == '\t' || *l->p == '\r')) l->p++;
}

bool literal_take(literal *l, char c) {
    blank(l);
    if (l->p >= l->end || *l->p != c) return false;
    l->p++;
    return true;
}

static int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool hex(literal *l, int digits, uint32_t *out) {
    *out = 0;
    if (l->end - l->p < digits) return false;
    for (int i = 0; i < digits; i++) {
        int d = digit(*l->p++);
        if (d < 0) return false;
        *out = *out * 16 + (uint32_t)d;
    }
    return true;
}

static void put(char *out, size_t cap, size_t *n, uint32_t byte) {
    if (*n + 1 < cap) out[*n] = (char)(unsigned char)byte;
    ++*n;
}

static void put_utf8(char *out, size_t cap, size_t *n, uint32_t c) {
    if (c < 0x80) put(out, cap, n, c);
    else if (c < 0x800) {
        put(out, cap, n, 0xc0 | (c >> 6));
        put(out, cap, n, 0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        put(out, cap, n, 0xe0 | (c >> 12));
        put(out, cap, n, 0x80 | ((c >> 6) & 0x3f));
        put(out, cap, n, 0x80 | (c & 0x3f));
    } else {
        put(out, cap, n, 0xf0 | ((c >> 18) & 7));
        put(out, cap, n, 0x80 | ((c >> 12) & 0x3f));
        put(out, cap, n, 0x80 | ((c >> 6) & 0x3f));
        put(out, cap, n, 0x80 | (c & 0x3f));
    }
}

bool literal_string(literal *l, char *out, size_t cap, size_t *length) {
    size_t n = 0;
    blank(l);
    if (l->p >= l->end || (*l->p != '\'' && *l->p != '"')) return false;
    char quote = *l->p++;
    while (l->p < l->end && *l->p != quote) {
        char c = *l->p++;
        if (c != '\\') {
            put(out, cap, &n, (unsigned char)c);
            continue;
        }
        if (l->p >= l->end) return false;
        uint32_t code, low;
        switch (c = *l->p++) {
        case 'n': put(out, cap, &n, '\n'); break;
        case 't': put(out, cap, &n, '\t'); break;
        case 'r': put(out, cap, &n, '\r'); break;
        case 'b': put(out, cap, &n, '\b'); break;
        case 'f': put(out, cap, &n, '\f'); break;
        case 'x':
            if (!hex(l, 2, &code)) return false;
            put_utf8(out, cap, &n, code);
            break;
        case 'U':
            if (!hex(l, 8, &code) || code > 0x10ffff) return false;
            put_utf8(out, cap, &n, code);
            break;
        case 'u':
            if (!hex(l, 4, &code)) return false;
            if (code >= 0xd800 && code < 0xdc00 && l->end - l->p >= 6 && l->p[0] == '\\' && l->p[1] == 'u') {
                l->p += 2;
                if (!hex(l, 4, &low) || low < 0xdc00 || low > 0xdfff) return false;
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            put_utf8(out, cap, &n, code);
            break;
        default: put(out, cap, &n, (unsigned char)c); /* \\ \' \" \/ */
        }
    }
    if (l->p >= l->end) return false;
    l->p++;
    if (cap) out[n < cap ? n : cap - 1] = 0;
    *length = n;
    return true;
}

bool literal_number(literal *l, double *out) {
    blank(l);
    bool negative = l->p < l->end && *l->p == '-';
    if (l->p < l->end && (*l->p == '-' || *l->p == '+')) l->p++;
    double mantissa = 0;
    int exponent = 0, seen = 0;
    bool point = false;
    for (; l->p < l->end; l->p++) {
        if (*l->p >= '0' && *l->p <= '9') {
            if (seen++ > 400) return false;
            mantissa = mantissa * 10 + (*l->p - '0');
            exponent -= point;
        } else if (*l->p == '.' && !point) point = true;
        else break;
    }
    if (!seen) return false;
    if (l->p < l->end && (*l->p == 'e' || *l->p == 'E')) {
        l->p++;
        bool minus = l->p < l->end && *l->p == '-';
        if (l->p < l->end && (*l->p == '-' || *l->p == '+')) l->p++;
        int e = 0, digits = 0;
        for (; l->p < l->end && *l->p >= '0' && *l->p <= '9'; l->p++, digits++) {
            if (digits > 4) return false;
            e = e * 10 + (*l->p - '0');
        }
        if (!digits) return false;
        exponent += minus ? -e : e;
    }
    double value = exponent < 0 ? mantissa / pow(10, -exponent) : mantissa * pow(10, exponent);
    *out = negative ? -value : value;
    return true;
}

bool literal_skip(literal *l) {
    char nothing[1];
    size_t length;
    double number;
    int depth = 0;
    do {
        blank(l);
        if (l->p >= l->end) return false;
        char c = *l->p;
        if (c == '{' || c == '[' || c == '(') {
            if (++depth > 32) return false;
            l->p++;
        } else if (c == '}' || c == ']' || c == ')') {
            if (--depth < 0) return false;
            l->p++;
        } else if (c == ',' || c == ':') {
            if (depth == 0) return false;
            l->p++;
        } else if (c == '\'' || c == '"') {
            if (!literal_string(l, nothing, sizeof nothing, &length)) return false;
        } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) { /* True, None, null, nan */
            while (l->p < l->end && ((*l->p >= 'a' && *l->p <= 'z') || (*l->p >= 'A' && *l->p <= 'Z'))) l->p++;
        } else if (!literal_number(l, &number)) return false;
    } while (depth > 0);
    return true;
}
