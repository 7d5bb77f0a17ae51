/* Faults: what a simulator is told to do wrong, how often, and where.
 *
 * A fault is JSON (POST /fault, an object or a list of them) or SPEC "service:kind[:key=value]...",
 * in which text= comes last:
 *
 *     {"service":"acs","kind":"throttle","retry_after":5,"count":3}
 *     acs:throttle:retry_after=5:count=3
 *     hve:reply:phase=rcpt:match=bob@:text=550 5.1.10 RESOLVER.ADR.RecipientNotFound
 *
 *     throttle         429 with Retry-After (5 s), and closed for that time. HVE: 432, or `text`;
 *                      closed for retry_after only when that is given
 *     status, reply    answers `status` with `code` and `text`; `retry_after` closes as throttle
 *                      does. HVE: the line `text`, or `status` and `text`. HTTP reply: `text` is
 *                      the whole body
 *     lost_answer      accepts and records, then drops the connection without an answer
 *     hang             never answers
 *     slow             answers `delay_ms` (1000) later
 *     reset            drops the connection before anything is accepted
 *     token_expired    401, HVE 535 5.7.143; the token service issues tokens that have expired
 *     bad_certificate  a connection gets a certificate nobody trusts
 *
 * `phase` says where. HVE: connect, ehlo, starttls, auth, mail, rcpt, data (instead of 354), end
 * (after the final dot), accepted (recorded, not answered). HTTP: request, accepted. The default is
 * data or request; for slow and hang at HVE end; for lost_answer accepted; for token_expired at HVE
 * auth; for bad_certificate tls, its only place.
 *
 * `probability` (1) and `count` (no end) limit it. `match` is a text that must occur in the command
 * (HVE; at end all recipients, at accepted the Message-ID) or in the target and body (HTTP).
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_FAULT_H
#define HEAVE_BENCH_SIM_FAULT_H

#include "bench/sim/conf.h"
#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum fault_kind {
    FAULT_THROTTLE,
    FAULT_STATUS,
    FAULT_REPLY,
    FAULT_LOST_ANSWER,
    FAULT_HANG,
    FAULT_SLOW,
    FAULT_RESET,
    FAULT_TOKEN_EXPIRED,
    FAULT_BAD_CERTIFICATE,
};
#define FAULT_KIND_COUNT 9

enum fault_phase {
    PHASE_TLS,
    PHASE_CONNECT,
    PHASE_EHLO,
    PHASE_STARTTLS,
    PHASE_AUTH,
    PHASE_MAIL,
    PHASE_RCPT,
    PHASE_DATA,
    PHASE_END,
    PHASE_REQUEST,
    PHASE_ACCEPTED,
};
#define FAULT_PHASE_COUNT 11

#define FAULT_TEXT_MAX 500
struct fault {
    enum sim_service service;
    enum fault_kind kind;
    enum fault_phase phase;
    double probability;
    int64_t count; /* left; negative: no end */
    uint32_t retry_after_s;
    bool has_retry_after;
    uint32_t status;
    int64_t delay_ms;
    uint64_t hits;
    char code[100];
    char text[FAULT_TEXT_MAX];
    char match[200];
};

struct faults;
/* `seed` 0: a random one. */
struct faults *faults_new(uint64_t seed);
void faults_free(struct faults **faults);
void faults_clear(struct faults *faults);
/* Errors: ERR_INVAL with a sentence; ERR_LIMIT (more than 64 faults). */
MUST_USE int faults_add_spec(struct faults *faults, struct span spec, struct err *err);
MUST_USE int faults_add_json(struct faults *faults, const json_t *body, struct err *err);
/* The list with hits and what is left, a new reference. */
MUST_USE json_t *faults_json(const struct faults *faults);
/* The first fault that strikes here, or NULL; it is used up by one. Lent until the next call on
 * `faults`. */
const struct fault *faults_take(struct faults *faults, enum sim_service service,
                                enum fault_phase phase, struct span subject);
/* Whether any fault waits at this place: to spare the hot path the making of a subject. */
bool faults_wait(const struct faults *faults, enum sim_service service, enum fault_phase phase);

#endif
