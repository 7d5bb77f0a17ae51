/* HTTPS requests on a loop: pooled and multiplexed connections (HTTP/2 where the server offers it),
 * deadlines, bounded answers, and the one thing that matters for mail: whether a request that got
 * no answer can have been acted on. The only user of libcurl.
 *
 * Must not know: tokens, signatures, mail. Thread: a client and its requests belong to one loop.
 *
 * One request:
 *
 *     http_client_send() ──► [connect, TLS] ──► on_start() ──► [head, body] ──► on_done()
 *
 * No callback runs inside a call the user makes. on_start() runs once, when a connection is there
 * and before the first byte of the request; on_done() runs exactly once.
 *
 * What a failure means (services.md 7.1): a service can act on a request only after its last byte.
 * So a failure before the last byte of the body was handed to the connection is HTTP_NOT_SENT, one
 * after it HTTP_LOST. libcurl repeats a request by itself when a kept connection turns out to be
 * dead; it is stopped from doing so after the last byte, except for requests that say `repeatable`.
 *
 * TLS is 1.2 or newer and always verified. Redirects are not followed. Only https. Proxy variables
 * of the environment are not looked at: a gateway that holds credentials goes where its
 * configuration says. */
#ifndef HEAVE_BACKENDS_HTTP_CLIENT_H
#define HEAVE_BACKENDS_HTTP_CLIENT_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* More bytes of an answer than this are not read; its status counts all the same. */
#define HTTP_ANSWER_MAX ((size_t)1 << 20)
#define HTTP_REQUEST_HEADERS_MAX 16

enum http_outcome {
    HTTP_ANSWERED, /* status and headers came in */
    HTTP_NOT_SENT, /* nothing can have been acted on */
    HTTP_LOST,     /* the whole request may have arrived; the answer did not */
};

struct http_result {
    enum http_outcome outcome;
    uint32_t status;        /* ANSWERED: 200..599; else 0 */
    int64_t retry_after_ms; /* from Retry-After (seconds or date) or Retry-After-Ms; -1: none */
    char request_id[80];    /* x-ms-request-id or request-id; "" when there is none */
    char error_code[80];    /* x-ms-error-code; "" when there is none */
    bool start_refused;     /* NOT_SENT because on_start() returned an error */
    struct span body;       /* of the answer, cut at HTTP_ANSWER_MAX */
    char why[240];          /* not ANSWERED: a sentence for people */
};

struct http_header {
    struct span name;
    struct span value; /* without CR and LF */
};

/* Caller's memory, lent with everything in it until on_done() has returned. */
struct http_request {
    const char *method; /* "GET" or "POST" */
    const char *url;    /* https://… */
    struct http_header headers[HTTP_REQUEST_HEADERS_MAX];
    size_t header_count;
    struct span body;
    bool repeatable;            /* asking twice does no harm (GET, token) */
    const char *ca_file;        /* NULL: the system's roots */
    int64_t connect_timeout_ms; /* name, connection, TLS; 0: 30 s */
    int64_t reply_timeout_ms;   /* without any progress once connected; 0: 60 s */
    /* 0 to go on; an error ends the request as HTTP_NOT_SENT. May be NULL. */
    int (*on_start)(struct http_request *request);
    void (*on_done)(struct http_request *request, const struct http_result *result);
    void *ctx;
    void *http_private; /* the client's */
};

struct http_client;

/* `max_connections` to one host and port; more requests wait. 0: no bound. */
struct http_client *http_client_new(struct loop *loop, uint32_t max_connections);
/* Adds a header; name and value are lent like the rest. */
void http_client_request_header(struct http_request *request, struct span name, struct span value);
void http_client_send(struct http_client *client, struct http_request *request);
/* Ends a request that has not reached on_done(); on_done() follows in this turn, HTTP_NOT_SENT or
 * HTTP_LOST as it stood. */
void http_client_cancel(struct http_client *client, struct http_request *request);
/* Requests between send and done. */
size_t http_client_pending(const struct http_client *client);
/* Cancels what is running (on_done() follows), closes the connections, calls on_closed, frees. */
void http_client_close(struct http_client **client, void (*on_closed)(void *ctx), void *ctx);

/* A Retry-After value in milliseconds from `wall_now_ms`, at most seven days; -1 when it is
 * malformed. */
int64_t http_retry_after_ms(struct span value, int64_t wall_now_ms);

#endif
