/* One event shape for HTTP/1.1 and HTTP/2: requests in, replies out. And the session that joins
 * them to a stream.
 *
 * http1.* (llhttp) and http2.* (nghttp2) are pure machines behind `struct http_machine_ops`;
 * http_session.* picks one by ALPN or by the HTTP/2 connection preface (prior knowledge, RFC
 * 9113 3.4) and moves bytes between it and the stream. Users (gateway/api, the simulators) see only
 * struct http_request and the functions below; http_machine.h is the protocols' side.
 *
 * Must not know: resources, JSON, mail. Thread: the loop's.
 *
 * Life of an exchange: on_head -> body collected (bounded) -> on_request -> http_reply (now or
 * later) -> gone. When the peer vanishes before the reply: on_gone, and http_reply must not be
 * called any more. */
#ifndef HEAVE_GATEWAY_HTTP_H
#define HEAVE_GATEWAY_HTTP_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"
#include "gateway/base/stream.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_header {
    struct span name; /* lower-case */
    struct span value;
};

#define HTTP_HEADERS_MAX 100
#define HTTP_HEAD_BYTES_MAX (64 * 1024)

/* A request being answered. Everything is valid until http_reply() or on_gone() has returned. */
struct http_request {
    struct span method;    /* "POST" */
    struct span target;    /* path and query exactly as sent (ACS signs it) */
    struct span path;      /* before '?' , not decoded */
    struct span query;     /* after '?', may be empty */
    struct span authority; /* Host or :authority */
    struct http_header *headers;
    size_t header_count;
    struct buf body; /* complete in on_request */
    int version;     /* 1 or 2 */
    bool is_tls;
    const char *tls_version;        /* "TLSv1.3"; "" on a plain connection */
    const char *peer;               /* "192.0.2.1:4711" */
    const char *peer_address;       /* "192.0.2.1" */
    struct arena arena;             /* for the user's own use too; max 1 MiB beyond the head */
    void *user;                     /* the user's own */
    struct http_exchange *exchange; /* private to the protocol files */
};

/* The first value of a header, empty span with NULL data when it is missing. `name` lower-case. */
struct span http_request_header(const struct http_request *request, const char *name);
/* A query parameter, percent-decoded into the request's arena. False when missing or undecodable.
 */
bool http_request_query(struct http_request *request, const char *name, struct span *out);
/* For parameters that repeat: takes the next name=value off `*rest` (start with request->query),
 * both decoded into the request's arena. False at the end. Errors in the escapes set `*out_bad`
 * (false is returned then). */
bool http_query_next(struct http_request *request, struct span *rest, struct span *out_name,
                     struct span *out_value, bool *out_bad);

/* Takes the complete body, for work that outlives the request; `out` is overwritten and the
 * caller's to release. */
void http_request_take_body(struct http_request *request, struct buf *out);

/* The user's side. Both may answer at once with http_reply(). */
struct http_handler {
    /* The head is complete, the body not read. Returns the most body bytes accepted; above it the
     * session answers 413 by calling on_too_large (or plain 413 when NULL). May call http_reply()
     * to refuse before the body comes. */
    size_t (*on_head)(void *ctx, struct http_request *request);
    void (*on_request)(void *ctx, struct http_request *request);
    /* The peer went away, or the session ends, before http_reply(). Drop every pointer to the
     * request. */
    void (*on_gone)(void *ctx, struct http_request *request);
    /* The body passes the limit: must call http_reply(). May be NULL. */
    void (*on_too_large)(void *ctx, struct http_request *request);
    /* A session began to speak a protocol ("http1", "h2"). Each one is followed by one
     * on_session_end. May be NULL. */
    void (*on_session_start)(void *ctx, const char *protocol);
    /* A session ended: counters for the event record. May be NULL. */
    void (*on_session_end)(void *ctx, const char *protocol, const char *peer, uint64_t requests,
                           uint64_t bytes_in, int64_t duration_ms, const char *end,
                           const char *tls_version);
};

/* Answers: exactly once per request, unless on_gone ran. Adds Date, Content-Length and what the
 * protocol needs; header names in lower-case. Body and headers are copied. HEAD and 204/304 send no
 * body. A header `connection: close` ends the HTTP/1 connection after the answer; HTTP/2 leaves it
 * out. Control bytes in values are replaced by '?'. */
void http_reply(struct http_request *request, int status, const struct http_header *headers,
                size_t header_count, struct span body);
/* Ends the connection without an answer (fault injection in the simulators); on_gone does not run.
 */
void http_abort(struct http_request *request);
/* "Not Found" for 404; "Status" for unknown codes. */
const char *http_status_text(int status);

struct http_limits {
    int64_t head_timeout_ms; /* a request's head must be complete within; 0: 15 s */
    int64_t body_timeout_ms; /* pauses inside a body; 0: 60 s */
    int64_t idle_timeout_ms; /* between requests; 0: 75 s */
    size_t max_requests;     /* in flight on one HTTP/2 connection; 0: 100 */
    size_t max_sessions;     /* of one server; more are closed unheard; 0: 10,000 */
    size_t max_bodies_bytes; /* request bodies of one server together: they come before anybody has
                              * shown who he is. Above it a body is refused with 503 (HTTP/2:
                              * REFUSED_STREAM), unless it is the only one. 0: 256 MiB */
};

/* Takes an accepted connection and serves it until it ends by itself: a session nobody drains
 * (tests, simulators). The handler and limits must outlive it. Errors: as stream_accept. */
MUST_USE int http_session_accept(struct loop *loop, uv_stream_t *listener, struct tls_context *tls,
                                 const struct http_handler *handler, void *ctx,
                                 const struct http_limits *limits);

/* The sessions of one loop that share handler and limits, so that they can be drained together. */
struct http_server;

/* `limits` may be NULL (all defaults); handler, ctx and limits must outlive the server. */
struct http_server *http_server_new(struct loop *loop, const struct http_handler *handler,
                                    void *ctx, const struct http_limits *limits);
/* As http_session_accept. While draining, the connection is closed at once. Errors: also ERR_FULL
 * (max_sessions). */
MUST_USE int http_server_accept(struct http_server *server, uv_stream_t *listener,
                                struct tls_context *tls);
/* Every session finishes its requests and takes no more (GOAWAY, Connection: close); idle ones end
 * now. */
void http_server_drain(struct http_server *server);
/* Sessions still open. */
size_t http_server_sessions(const struct http_server *server);
/* Ends all sessions at once and frees the server. on_gone and on_session_end run now; afterwards
 * the handler is not touched again. */
void http_server_free(struct http_server **server);

#endif
