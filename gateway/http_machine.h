/* The private contract between the HTTP protocol machines (http1.c, http2.c) and what drives them
 * (http_session.c, unit tests, fuzzers). Users of HTTP include http.h, never this.
 *
 * A machine is pure: bytes in by feed, bytes out by output, requests and their ends by the
 * callbacks of `struct http_handler`. It knows no socket, loop or clock; what it needs from outside
 * is in `struct http_host`.
 *
 * Must not know: streams, timers. Thread: that of its owner.
 *
 * Phases, as the owner sees them for its deadlines:
 *
 *     IDLE -> HEAD -> BODY -> WAIT -> IDLE ...        any -> LINGER -> DONE, any -> DONE
 *
 * HTTP/2 has no HEAD and no LINGER; BODY wins over WAIT when several streams are open. */
#ifndef HEAVE_GATEWAY_HTTP_MACHINE_H
#define HEAVE_GATEWAY_HTTP_MACHINE_H

#include "gateway/http.h"

enum http_phase {
    HTTP_PHASE_IDLE,   /* between requests, all answers given */
    HTTP_PHASE_HEAD,   /* inside a request's head */
    HTTP_PHASE_BODY,   /* inside a request's body */
    HTTP_PHASE_WAIT,   /* waiting for the handler's http_reply() */
    HTTP_PHASE_LINGER, /* answered and ending; input is read and dropped, so that the peer can read
                          the answer */
    HTTP_PHASE_DONE,   /* nothing more will be read; close once the output has left */
};

/* What the bodies of several connections may hold together. */
struct http_budget {
    size_t used_bytes;
    size_t max_bytes;
};

/* What a machine is given by its owner; must outlive it. */
struct http_host {
    const struct http_handler *handler;
    void *handler_ctx;
    const char *peer;
    const char *peer_address;
    bool is_tls;
    const char *tls_version;    /* NULL or "" when plain */
    size_t max_requests;        /* HTTP/2 streams in flight; above 0 */
    struct http_budget *bodies; /* NULL: bounded by nothing but the limit of each body */
    /* Output may be waiting, or the phase has changed. Called from inside http_reply() and feed. */
    void (*on_output)(void *ctx);
    /* http_abort() was called: the connection must go without another byte. */
    void (*on_abort)(void *ctx);
    /* The Date field. */
    int64_t (*wall_ms)(void *ctx);
    void *ctx;
};

struct http_machine;

/* The shape both protocols have. */
struct http_machine_ops {
    const char *protocol; /* "http1", "h2": the words of events and metrics */
    /* Takes input; `*out_used` bytes of it are used, the rest is to be shown again (a reply or room
     * for output is waited for). Protocol errors are not errors here: the machine answers and
     * changes its phase. Errors: ERR_NOMEM, ERR_PROTO: end the connection at once. */
    int (*feed)(struct http_machine *machine, struct span bytes, size_t *out_used);
    /* The next piece of output, lent until the next call; empty when there is none now. Errors:
     * ERR_NOMEM, ERR_PROTO. */
    int (*output)(struct http_machine *machine, struct span *out);
    enum http_phase (*phase)(const struct http_machine *machine);
    /* The owner's deadline for the phase has passed: answers (408) or says goodbye; the phase is
     * LINGER or DONE then. */
    void (*timeout)(struct http_machine *machine);
    /* Finishes the requests it has and takes no more. */
    void (*drain)(struct http_machine *machine);
    void (*reply)(struct http_exchange *exchange, int status, const struct http_header *headers,
                  size_t header_count, struct span body);
    void (*abort)(struct http_exchange *exchange);
    /* Calls on_gone for every request not answered. */
    void (*free)(struct http_machine *machine);
};

/* First member of struct http1 and struct http2. */
struct http_machine {
    const struct http_machine_ops *ops;
    const struct http_host *host;
    uint64_t requests; /* heads completed */
};

/* First member of the protocols' own exchanges. */
struct http_exchange {
    struct http_request request;
    struct http_machine *machine;
    size_t header_room; /* capacity of request.headers */
    size_t head_bytes;  /* names and values so far */
    size_t body_limit;  /* as on_head said */
    size_t charged;     /* its part of host->bodies */
    bool announced;     /* on_head ran: the handler knows the request */
    bool replied; /* http_reply, http_abort or on_gone ran: the handler must not be called again */
};

/* Fills what every exchange has from the machine's host. */
void http_exchange_init(struct http_exchange *exchange, struct http_machine *machine, int version);
void http_exchange_release(struct http_exchange *exchange);
/* Adds a header; `name` (made lower-case in place) and `value` must live in the request's arena.
 * Errors: ERR_LIMIT (HTTP_HEADERS_MAX or HTTP_HEAD_BYTES_MAX passed), ERR_NOMEM. */
MUST_USE int http_exchange_header(struct http_exchange *exchange, char *name, size_t name_len,
                                  struct span value);
/* Cuts target into path and query; takes the authority out of an absolute-form target (RFC
 * 9112 3.2.2). Errors: ERR_INVAL (neither '/', '*' nor http(s)://, or a fragment). */
MUST_USE int http_exchange_target(struct http_exchange *exchange, struct span target);
/* Appends to the body, within host->bodies. Errors: ERR_FULL (others hold too much), ERR_LIMIT,
 * ERR_NOMEM. */
MUST_USE int http_exchange_body(struct http_exchange *exchange, struct span bytes);
/* The body is not held any more. http_exchange_release() does this as well. */
void http_exchange_uncharge(struct http_exchange *exchange);
/* The handler's on_head: sets announced and body_limit. Returns false when the handler has
 * answered. */
bool http_exchange_announce(struct http_exchange *exchange);
/* on_gone if the handler knows the request and has not answered. */
void http_exchange_gone(struct http_exchange *exchange);
/* Whether an answer with this status to this method carries a body (RFC 9110 6.4.1). */
bool http_answer_has_body(struct span method, int status);
/* Whether `value` (a comma-separated list, RFC 9110 5.6.1) has the member `token`, compared without
 * case. */
bool http_list_has(struct span value, struct span token);

/* The body of answers the machines give themselves: problem+json with a static sentence.
 * NUL-terminated. */
#define HTTP_PROBLEM_MAX 512
struct span http_problem_text(int status, const char *detail, char room[HTTP_PROBLEM_MAX]);

/* A machine calls this for a request whose body is above the limit: on_too_large, or a plain 413.
 */
void http_exchange_too_large(struct http_exchange *exchange);

#endif
