/* Events: the one record per transition from which log line and metrics both come.
 *
 * Must not know: who reports. Thread: any; counters are relaxed atomics, log lines are whole. The
 * metric table of the process stands in events.c: one row per metric with unit and help. */
#ifndef HEAVE_GATEWAY_EVENTS_H
#define HEAVE_GATEWAY_EVENTS_H

#include "gateway/base/buf.h"
#include "gateway/base/metrics.h"
#include "queue/message.h"

#include <stdbool.h>
#include <stdint.h>

struct events;

struct events *events_new(void);
void events_free(struct events **events);
struct metrics *events_metrics(struct events *events);
/* The metric table, for documentation and checks. */
const struct metric_def *events_metric_table(size_t *out_count);

/* A session ended: SMTP or HTTP. */
struct event_session {
    const char *protocol; /* "smtp", "http1", "h2" */
    const char *peer;
    const char *client; /* "" when none was authorised */
    struct span helo;
    const char *tls_version;
    const char *auth;  /* "PLAIN", "LOGIN", "network", "key", "" */
    uint64_t messages; /* accepted in it */
    uint64_t refused;  /* replies 4xx/5xx */
    uint64_t requests; /* commands or requests */
    uint64_t bytes_in;
    int64_t duration_ms;
    const char *end; /* "quit", "eof", "timeout", "error", "drain", ... */
};
void events_session_opened(struct events *events, const char *protocol);
void events_session(struct events *events, const struct event_session *session);
/* An authentication was tried. */
void events_auth(struct events *events, const char *protocol, const char *peer, struct span user,
                 bool success);

/* Intake decided about a message. */
struct event_message {
    struct span id;
    const char *protocol;
    const char *client;
    struct span lane;
    const char *verdict; /* intake_verdict_name */
    const char *detail;
    struct span reverse_path;
    uint64_t bytes;
    uint64_t recipients;
    uint64_t batches;
    uint64_t rejected;
    int64_t accept_us; /* from complete message to durable */
};
void events_message(struct events *events, const struct event_message *message);

/* A batch was tried. */
struct event_attempt {
    struct span id;
    uint32_t batch;
    struct span lane;
    const char *backend;
    const char *account;
    const char *verdict; /* of the batch: the worst of its recipients, or "mixed" */
    uint64_t recipients;
    uint64_t delivered;
    uint64_t failed;
    uint64_t deferred;
    uint32_t attempt;
    struct span reply;
    const char *remedy; /* or NULL */
    int64_t duration_us;
    int64_t next_attempt_ms; /* wall; 0: none */
};
void events_attempt(struct events *events, const struct event_attempt *attempt);

/* A message's recipients reached terminal states in this settle. */
struct event_outcome {
    struct span id;
    uint32_t batch;
    struct span lane;
    const char *backend;
    enum recipient_state state;
    uint64_t recipients;
    int64_t age_ms; /* since acceptance */
};
void events_outcome(struct events *events, const struct event_outcome *outcome);

/* The rest: things that happen to the process. */
void events_redis(struct events *events, bool up, const char *why);
/* A connection is still down, for another reason: a log line alone. */
void events_redis_refused(struct events *events, const char *why);
/* Redis refuses something, or is slow: a sentence for the log while the connection goes on. */
void events_redis_warning(struct events *events, const char *text);
/* The level of queue.durability, for a metric. */
void events_durability(struct events *events, const char *level);
void events_sweep(struct events *events, const char *what, int64_t count);
/* An operator, or a client with DELETE, changed batches that waited or had failed. `who`: the
 * client, or "loopback" of an operator there who gave no key. */
void events_work(struct events *events, const char *verb, const char *who, int64_t messages,
                 int64_t batches, int64_t busy);
void events_health(struct events *events, const char *backend, const char *account,
                   const char *what, const char *text, const char *remedy);
void events_throttled(struct events *events, const char *backend, const char *account,
                      int64_t wait_ms, struct span reply);
void events_depth(struct events *events, struct span lane, struct span backend, const char *state,
                  int64_t batches, int64_t oldest_age_ms);
void events_queue_bytes(struct events *events, int64_t bytes, int64_t messages_open);
void events_queue_ended(struct events *events, int64_t dead_letters, int64_t dead_bytes,
                        int64_t history_bytes);
/* A collection could not be sent now and is kept: a log line alone. */
void events_digest_held(struct events *events, struct span id, const char *client, const char *why);
/* There is such a lane, and it is open. */
void events_admission_lane(struct events *events, const char *lane);
/* A lane is accepted now, or not and why ("bytes", ...); told at each change. */
void events_admission(struct events *events, const char *lane, bool open, const char *reason);
/* A message or a peer was put off because its lane is closed: counted. */
void events_admission_refused(struct events *events, struct span lane, const char *reason);
void events_config_reload(struct events *events, bool success);
/* How many queue handles the process has: all of them must be up before it is ready. Set once,
 * before threads run. */
void events_expect_redis(struct events *events, int handles);
/* Whether every queue handle of the process is up, as events_redis() was told; for /readyz. */
bool events_redis_is_up(const struct events *events);

#endif
