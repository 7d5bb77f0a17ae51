/* Intake: a submission in, a verdict out; the one place that decides "accepted".
 *
 * SMTP and HTTP end here with the same struct. Intake checks sender and recipients against the
 * client's rules, completes the header (Received, Date, Message-ID; Bcc and X-Heave-* removed),
 * routes and splits (route.h), and enqueues. The callback says yes only when everything is durable.
 *
 * Must not know: sockets, SMTP or HTTP replies; it returns classes which the protocols turn into
 * their replies. Thread: one intake per ingress loop. */
#ifndef HEAVE_GATEWAY_INTAKE_H
#define HEAVE_GATEWAY_INTAKE_H

#include "gateway/admission.h"
#include "gateway/base/buf.h"
#include "gateway/base/loop.h"
#include "gateway/events.h"
#include "gateway/policy.h"
#include "gateway/route.h"
#include "queue/queue.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the protocols share with intake; an immutable snapshot that belongs to the configuration. */
struct intake_conf {
    const char *hostname;
    const struct route_conf *route;
    const char *const *lane_names;
    const int64_t *lane_expires_ms;
    size_t lane_count;
    uint32_t max_received; /* loop limit, RFC 5321 6.3: 50 */
    size_t max_message_bytes;
};

enum intake_verdict {
    INTAKE_ACCEPTED,
    INTAKE_REPLAYED,     /* idempotency key known: same answer again */
    INTAKE_DEDUPLICATED, /* a repeat inside its client's window: accepted, not queued again; `id` is
                            that of the last one that was */
    INTAKE_COLLECTED,    /* accepted into a collection of its client, which will be sent as `id` */
    INTAKE_CONFLICT,     /* idempotency key with other content */
    INTAKE_RUNNING,      /* idempotency key of a submission that is being taken: 451 4.3.0 / 409 */
    INTAKE_SENDER_DENIED, /* client may not use this sender */
    INTAKE_NO_RECIPIENT,  /* none left that may be sent to */
    INTAKE_BAD_MESSAGE,   /* header broken beyond use, loop limit, bad X-Heave-* value */
    INTAKE_TOO_LARGE,
    INTAKE_FULL,        /* admission: 452 4.3.1 / 503 */
    INTAKE_UNAVAILABLE, /* Redis away: 451 4.3.0 / 503 */
};
/* "accepted", "full", ...: label of the metric and of the log line. */
const char *intake_verdict_name(enum intake_verdict verdict);

/* A recipient that was refused while others were accepted. */
struct intake_rejected {
    struct span address;
    const char *reason; /* static sentence */
};

struct intake_result {
    enum intake_verdict verdict;
    const char *detail; /* a sentence for the peer; static or in the submission's arena */
    struct span id;     /* message id when accepted, replayed or deduplicated */
    struct span answer; /* stored answer on replay; else empty */
    size_t accepted;    /* recipients after de-duplication */
    size_t batches;
    const struct intake_rejected *rejected;
    size_t rejected_count;
};

/* One message as handed in. The caller fills the first part; everything must stay valid until the
 * callback, except for the bytes of `message`, which are used until on_message_taken. */
struct submission {
    struct arena arena;                 /* caller inits and releases; intake allocates here */
    const struct policy_client *client; /* who was authorised; never NULL */
    struct policy *policy;              /* reference held by the caller */
    struct span lane; /* asked for by the API; empty: header or client's default */
    struct span reverse_path;
    struct span *recipients; /* envelope, in order, as given */
    size_t recipient_count;
    struct span message; /* RFC 5322, CR LF */
    bool smtputf8;
    bool partial_ok; /* recipients that cannot be routed are listed in `rejected` and the others go
                      * on (HTTP); otherwise one of them refuses the whole message (SMTP, where
                      * RCPT has already said yes to each) */
    int64_t send_at_ms;          /* wall; 0: now */
    int64_t expires_in_ms;       /* 0: the lane's */
    struct span idempotency_key; /* empty: that of the header X-Heave-Idempotency-Key, which counts
                                    for one envelope, or none */
    struct span idempotency_fingerprint; /* what must be equal for a replay; empty: intake hashes
                                            the message */
    /* Makes the answer that is stored with the idempotency key and given back on replay; `result`
     * holds id and counts. In the submission's arena. NULL: nothing is stored. */
    struct span (*make_answer)(struct submission *submission, const struct intake_result *result);
    /* For the Received field (RFC 5321 4.4): */
    const char *peer_address; /* "192.0.2.1" */
    struct span helo;         /* EHLO argument; empty over HTTP */
    const char *with;         /* "ESMTPSA", "SMTP", "HTTPS", ... RFC 3848 */
    const char *tls_version;  /* "" when plain */
    /* The bytes of `message` are not needed any more: called once, perhaps inside intake_submit(),
     * before on_result. May be NULL. */
    void (*on_message_taken)(struct submission *submission);
    /* Called when accepted durable or refused, exactly once, on the loop, never inside
     * intake_submit(). */
    void (*on_result)(struct submission *submission, const struct intake_result *result);
    void *ctx;
    void *intake_private;
};

struct intake;

/* `conf` must outlive the intake; a reload makes new ones and calls intake_reconfigure between
 * turns. */
struct intake *intake_new(struct loop *loop, struct queue *queue, const struct intake_conf *conf,
                          struct events *events);
void intake_free(struct intake **intake);
/* Submissions running keep the old snapshot. */
void intake_reconfigure(struct intake *intake, const struct intake_conf *conf);
/* The lanes that are closed are refused from now on; NULL: none are. `admission` must outlive the
 * intake. */
void intake_set_admission(struct intake *intake, const struct admission *admission);
/* Whether accepting from this client makes sense now: Redis is up, and the lane its messages go to
 * is open (when it may choose, or for NULL, any lane). Cheap; asked at MAIL and at request heads,
 * so that peers are put off before they send a body; each no is counted. INTAKE_ACCEPTED,
 * INTAKE_UNAVAILABLE or INTAKE_FULL; `*out_why` is a static sentence for the peer when it is not
 * ACCEPTED. */
enum intake_verdict intake_ready(struct intake *intake, const struct policy_client *client,
                                 const char **out_why);
/* Whether this recipient can be accepted from this client, asked at RCPT: NULL yes, else a static
 * sentence. */
const char *intake_recipient_check(const struct intake *intake, const struct policy_client *client,
                                   struct span address, bool smtputf8);
/* Takes the submission until on_result. Never fails: refusals come through on_result. */
void intake_submit(struct intake *intake, struct submission *submission);
/* Submissions between submit and result, for the drain. */
size_t intake_pending(const struct intake *intake);

#endif
