/* The tables that say what a service's answer means: data with a source per row, no code per
 * answer.
 *
 * Must not know: connections, batches, clocks. Pure; thread: any. Facts are those of services.md;
 * `source` names the section a row comes from, `example` is an answer as it was seen, and the unit
 * test asks that every row is what its own example finds, so a row that an earlier one hides is a
 * failing test.
 *
 * Rows are searched from the top, so the specific stand before the general; the last rows are the
 * classes of RFC 5321 4.2.1 (SMTP) and RFC 9110 15 (HTTP), and something always matches. */
#ifndef HEAVE_BACKENDS_VERDICTS_H
#define HEAVE_BACKENDS_VERDICTS_H

#include "backends/backend.h"
#include "gateway/base/buf.h"

#include <stddef.h>
#include <stdint.h>

/* ---- SMTP (verdicts.c) ---- */

/* Which step of a session the reply answers. A set in rows, one of them in a question. */
enum verdict_phase {
    PHASE_CONNECT = 1u << 0, /* greeting, EHLO, STARTTLS, and everything before the first command */
    PHASE_AUTH = 1u << 1,
    PHASE_MAIL = 1u << 2,
    PHASE_RCPT = 1u << 3,
    PHASE_DATA = 1u << 4, /* the answer to DATA itself */
    PHASE_DOT = 1u << 5,  /* the answer to the final dot */
};
#define PHASE_ANY 0x3fu
#define PHASE_SENDING ((unsigned)(PHASE_MAIL | PHASE_RCPT | PHASE_DATA | PHASE_DOT))

enum verdict_kind {
    KIND_HVE = 1u << 0,
    KIND_RELAY = 1u << 1, /* OAuth SMTP, connector, on-premises, any other SMTP server */
};
#define KIND_SMTP ((unsigned)(KIND_HVE | KIND_RELAY))

struct verdict_smtp_row {
    uint16_t code; /* 550; below 10 a class: 4 is every 4xx */
    const char
        *enhanced;    /* "5.7.139", or a prefix ending in '*' such as "4.7.5*"; NULL: any or none */
    const char *text; /* part of the text, ASCII case ignored; NULL: any */
    unsigned phases;  /* set of enum verdict_phase */
    unsigned kinds;   /* set of enum verdict_kind */
    enum verdict verdict;
    enum verdict_scope scope;
    int64_t wait_ms;    /* 0: default of the class */
    const char *remedy; /* full sentence, or NULL */
    const char *source;
    const char *example; /* "550 5.7.240 The application ..." */
};
extern const struct verdict_smtp_row verdict_smtp_rows[];
extern const size_t verdict_smtp_row_count;

/* The row for a reply of `code` (200..599) whose text, without the code and with lines joined by a
 * space, is `text`. Never NULL. */
const struct verdict_smtp_row *verdict_smtp_find(enum verdict_kind kind, enum verdict_phase phase,
                                                 uint32_t code, struct span text);
/* The same as an answer: text becomes "code text", cut. */
void verdict_smtp_answer(enum verdict_kind kind, enum verdict_phase phase, uint32_t code,
                         struct span text, struct answer *out);
/* An answer in our own words, with no code: connection trouble, a limit found before anything was
 * sent. */
void verdict_own_answer(enum verdict verdict, const char *text, struct answer *out);

/* ---- HTTP (verdicts_http.c) ---- */

enum verdict_http_kind {
    KIND_ACS_SEND = 1u << 0,
    KIND_ACS_STATUS = 1u << 1,
    KIND_GRAPH = 1u << 2,
    KIND_TOKEN = 1u << 3,
};

struct verdict_http_row {
    uint16_t status;  /* 429; below 10 a class: 5 is every 5xx; 0: any */
    const char *code; /* error.code, or the AADSTS number for KIND_TOKEN; NULL: any or none */
    const char *text; /* part of error.message, ASCII case ignored; NULL: any */
    unsigned kinds;   /* set of enum verdict_http_kind */
    enum verdict verdict;
    enum verdict_scope scope;
    int64_t wait_ms; /* when there is no Retry-After; 0: default of the class */
    const char *remedy;
    const char *source;
    const char *example; /* "429 TooManyRequests PerSubscription..." : status, code or "-", text */
};
extern const struct verdict_http_row verdict_http_rows[];
extern const size_t verdict_http_row_count;

const struct verdict_http_row *verdict_http_find(enum verdict_http_kind kind, uint32_t status,
                                                 struct span code, struct span text);

#endif
