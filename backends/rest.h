/* What ACS and Graph share: reading an error body, turning an HTTP result into an answer, and
 * sending a batch in pieces.
 *
 * Must not know: either service's requests. Thread: the backend's loop; no state of its own. */
#ifndef HEAVE_BACKENDS_REST_H
#define HEAVE_BACKENDS_REST_H

#include "backends/backend.h"
#include "backends/http_client.h"
#include "backends/verdicts.h"
#include "queue/message.h"

struct rest_backend;

/* The service's words about a failure; empty where it said nothing. NUL-terminated, cut. */
struct rest_error {
    char code[80];     /* error.code, or the first AADSTS number */
    char message[260]; /* error.message, or `error` and error_description */
};
/* Reads {"error":{"code","message"}} and the token service's
 * {"error","error_description","error_codes"}. */
void rest_error_read(struct span body, struct rest_error *out);

/* The answer a result means by the verdict table; HTTP_NOT_SENT is TRANSIENT, HTTP_LOST is UNKNOWN
 * (for a question or a token, where nothing can be accepted, TRANSIENT). */
void rest_answer(enum verdict_http_kind kind, const struct http_result *result, struct answer *out);

/* Recipients of a delivery that are sent together: from .. from + count - 1. */
struct rest_range {
    size_t from;
    size_t count;
};

/* One delivery on its way. A kind's own struct begins with it.
 *
 *   rest_begin() -> start() [end of turn] -> ... rest_next() for each range ... -> rest_finish()
 *
 * A delivery is one range at first. A service that refuses a request because of one recipient
 * without naming it is asked again with halves, so at most log2(50) + 1 ranges are ever kept. */
struct rest_job {
    struct rest_job *next;
    struct rest_job *prev;
    struct rest_backend *backend;
    struct delivery *delivery;
    struct answer answers[BATCH_RECIPIENTS_MAX];
    bool answered[BATCH_RECIPIENTS_MAX];
    struct rest_range ranges[16];
    size_t range_count;
    struct rest_range range; /* the one being sent */
    struct http_request request;
    bool requesting; /* `request` is with the HTTP client */
    bool started;    /* delivery->on_start() said yes */
    struct loop_task task;
};

/* What a kind does in the life of its jobs. */
struct rest_ops {
    /* Runs after rest_begin(), outside of it; leads to rest_finish() at once or later. */
    void (*start)(struct rest_job *job);
    /* Takes back whatever the job waits for besides `request`; true when it did: the job is then
     * finished by rest. */
    bool (*stop_waiting)(struct rest_job *job);
    /* Releases the kind's parts and frees the job. */
    void (*job_free)(struct rest_job *job);
    /* The same for the backend, when its HTTP client is closed. */
    void (*backend_free)(struct rest_backend *backend);
};

/* A kind's backend object begins with it. */
struct rest_backend {
    struct backend base;
    const struct rest_ops *ops;
    struct backend_env env;
    struct http_client *client;
    struct rest_job jobs; /* head of a ring */
    size_t running;
    int64_t closed_until_ms; /* loop time: nothing is sent before */
    bool unhealthy;          /* on_health was told so */
    bool closing;
    bool stopping; /* the grace is over: what runs is cancelled */
    struct loop_timer grace;
    struct loop_task close_task;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

void rest_backend_init(struct rest_backend *backend, const struct backend_ops *ops,
                       const struct rest_ops *rest_ops, const struct backend_env *env,
                       const struct backend_conf *conf, uint32_t max_connections);
/* Whether anything may be sent now. */
bool rest_open(const struct rest_backend *backend);
/* backend_ops.close of both kinds. */
void rest_close(struct backend *backend, int64_t grace_ms, void (*on_closed)(void *ctx), void *ctx);
/* Takes the verdict of a SCOPE_BACKEND answer into account: nothing is sent until its time has
 * passed, and on_health hears of trouble and of its end. */
void rest_note(struct rest_backend *backend, const struct answer *answer, const char *account);

/* `job` is zeroed memory of the kind's own struct. */
void rest_begin(struct rest_backend *backend, struct rest_job *job, struct delivery *delivery);
/* The next range into job->range; false when none is left or the backend is stopping. */
bool rest_next(struct rest_job *job);
void rest_push(struct rest_job *job, size_t from, size_t count);
/* Puts both halves of the current range, of two or more, back. */
void rest_split(struct rest_job *job);
/* Hands job->request to the HTTP client, with delivery->on_start() before its first byte when
 * `sends`. The kind sets everything else; `on_done` gets job as request->ctx. */
void rest_request(struct rest_job *job, bool sends,
                  void (*on_done)(struct http_request *request, const struct http_result *result));
/* Answers the current range, or everybody who has no answer yet. */
void rest_answer_range(struct rest_job *job, const struct answer *answer);
void rest_answer_rest(struct rest_job *job, const struct answer *answer);
/* Reports the delivery and frees the job. Everybody has an answer. */
void rest_finish(struct rest_job *job, const char *account);

#endif
