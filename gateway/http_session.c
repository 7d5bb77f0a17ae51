#include "gateway/base/clock.h"
#include "gateway/http1.h"
#include "gateway/http2.h"
#include "gateway/http_machine.h"

#include <stdio.h>

/* Joins a stream to a protocol machine: bytes up, output down, one deadline that follows the
 * machine's phase.
 *
 * States: OPENING (TLS, waiting for the bytes that tell the protocol) -> SERVING (machine set) ->
 * ending (stream_close or stream_abort was called) -> on_close, where everything goes. A session is
 * freed in on_close only.
 *
 * `busy` is set while the machine runs; on_output then only notes, and whoever set it pushes the
 * output afterwards. */

#define HTTP_HEAD_TIMEOUT_MS 15000
#define HTTP_BODY_TIMEOUT_MS 60000
#define HTTP_IDLE_TIMEOUT_MS 75000
#define HTTP_LINGER_PAUSE_MS 2000
#define HTTP_LINGER_TOTAL_MS 30000
#define HTTP_MAX_REQUESTS 100
#define HTTP_MAX_SESSIONS 10000
#define HTTP_MAX_BODIES_BYTES ((size_t)256 << 20)
#define HTTP_PEER_TEXT_MAX 64

struct http_session {
    struct http_session *next; /* in the server's list */
    struct http_session *prev;
    struct http_server *server; /* NULL: stands alone, or the server was freed */
    struct loop *loop;
    struct stream *stream;
    const struct http_handler *handler;
    void *ctx;
    struct http_limits limits; /* with the defaults filled in */
    struct http_host host;
    struct http_machine *machine;
    char peer[HTTP_PEER_TEXT_MAX];
    char peer_address[HTTP_PEER_TEXT_MAX];
    int64_t start_ms;
    int64_t linger_end_ms;
    uint64_t bytes_in;
    const char *end; /* why the session ends, when we know */
    enum http_phase armed_phase;
    uint64_t armed_requests;
    bool armed;
    bool busy;
    bool stalled;     /* the stream keeps bytes the machine did not want */
    bool more_output; /* the stream was full: on_drain goes on */
    bool ending;
    bool finished; /* the handler was told */
};

struct http_server {
    struct loop *loop;
    const struct http_handler *handler;
    void *ctx;
    struct http_limits limits;
    struct http_session *first;
    size_t count;
    struct http_budget bodies;
    bool draining;
};

static struct http_limits http_limits_filled(const struct http_limits *limits)
{
    struct http_limits filled = limits != NULL ? *limits : (struct http_limits){0};
    filled.head_timeout_ms = filled.head_timeout_ms > 0 ? filled.head_timeout_ms
                                                        : HTTP_HEAD_TIMEOUT_MS;
    filled.body_timeout_ms = filled.body_timeout_ms > 0 ? filled.body_timeout_ms
                                                        : HTTP_BODY_TIMEOUT_MS;
    filled.idle_timeout_ms = filled.idle_timeout_ms > 0 ? filled.idle_timeout_ms
                                                        : HTTP_IDLE_TIMEOUT_MS;
    filled.max_requests = filled.max_requests > 0 ? filled.max_requests : HTTP_MAX_REQUESTS;
    filled.max_sessions = filled.max_sessions > 0 ? filled.max_sessions : HTTP_MAX_SESSIONS;
    filled.max_bodies_bytes = filled.max_bodies_bytes > 0 ? filled.max_bodies_bytes
                                                          : HTTP_MAX_BODIES_BYTES;
    return filled;
}

static void session_end(struct http_session *s, const char *why, bool at_once)
{
    if (s->end == NULL) {
        s->end = why;
    }
    if (s->ending && !at_once) {
        return;
    }
    s->ending = true;
    stream_deadline(s->stream, 0);
    if (at_once) {
        stream_abort(s->stream);
    } else {
        stream_close(s->stream);
    }
}

/* Moves the machine's output to the stream as long as that takes it. */
static void session_push(struct http_session *s)
{
    s->more_output = false;
    while (!s->ending) {
        if (stream_above_high_water(s->stream)) {
            s->more_output = true;
            return;
        }
        struct span out = {.data = NULL, .len = 0};
        int rc = s->machine->ops->output(s->machine, &out);
        if (rc != 0) {
            session_end(s, "error", true);
            return;
        }
        if (out.len == 0) {
            return;
        }
        rc = stream_write(s->stream, out);
        if (rc != 0) {
            session_end(s, "error", true);
            return;
        }
    }
}

static int64_t session_timeout_of(const struct http_session *s, enum http_phase phase)
{
    switch (phase) {
    case HTTP_PHASE_IDLE:
        return s->limits.idle_timeout_ms;
    case HTTP_PHASE_HEAD:
        return s->limits.head_timeout_ms;
    case HTTP_PHASE_BODY:
        return s->limits.body_timeout_ms;
    case HTTP_PHASE_LINGER:
        return HTTP_LINGER_PAUSE_MS;
    case HTTP_PHASE_WAIT:
    case HTTP_PHASE_DONE:
        break;
    }
    return 0;
}

/* Sets the deadline the phase asks for. Only body and linger are extended by bytes: a head has to
 * be complete in time however slowly it trickles. `progress`: bytes were taken. */
static void session_arm(struct http_session *s, bool progress)
{
    enum http_phase phase = s->machine->ops->phase(s->machine);
    bool same = s->armed && phase == s->armed_phase && s->machine->requests == s->armed_requests;
    int64_t now = loop_now_ms(s->loop);
    if (phase == HTTP_PHASE_LINGER && s->linger_end_ms == 0) {
        s->linger_end_ms = now + HTTP_LINGER_TOTAL_MS;
    }
    bool extend = progress && (phase == HTTP_PHASE_BODY ||
                               (phase == HTTP_PHASE_LINGER && now < s->linger_end_ms));
    if (same && !extend) {
        return;
    }
    s->armed = true;
    s->armed_phase = phase;
    s->armed_requests = s->machine->requests;
    stream_deadline(s->stream, session_timeout_of(s, phase));
}

/* After the machine ran: output, end, deadline. */
static void session_settle(struct http_session *s, bool progress)
{
    session_push(s);
    s->busy = false;
    if (s->ending) {
        return;
    }
    if (!s->more_output && s->machine->ops->phase(s->machine) == HTTP_PHASE_DONE) {
        session_end(s, "closed", false);
        return;
    }
    session_arm(s, progress);
}

/* The machine's host. */

static void session_on_output(void *ctx)
{
    struct http_session *s = ctx;
    if (s->busy || s->ending) {
        return;
    }
    s->busy = true;
    session_settle(s, false);
    if (s->stalled && !s->ending) {
        stream_resume(s->stream);
    }
}

static void session_on_abort(void *ctx)
{
    struct http_session *s = ctx;
    session_end(s, "aborted", true);
}

static int64_t session_wall_ms(void *ctx)
{
    (void)ctx;
    return clock_wall_ms();
}

/* Picks the protocol by ALPN, else by the connection preface. False: more bytes are needed, or
 * memory is gone. */
static bool session_detect(struct http_session *s, struct span bytes)
{
    const char *alpn = stream_alpn(s->stream);
    bool is_h2 = strcmp(alpn, "h2") == 0;
    if (!is_h2 && strcmp(alpn, "http/1.1") != 0) {
        struct span preface = span_make(HTTP2_PREFACE, HTTP2_PREFACE_LEN);
        size_t seen = bytes.len < preface.len ? bytes.len : preface.len;
        bool may_be_h2 = memcmp(bytes.data, preface.data, seen) == 0;
        if (may_be_h2 && seen < preface.len) {
            return false;
        }
        is_h2 = may_be_h2;
    }
    s->machine = is_h2 ? http2_new(&s->host) : http1_new(&s->host);
    if (s->machine == NULL) {
        session_end(s, "error", true);
        return false;
    }
    if (s->handler->on_session_start != NULL) {
        s->handler->on_session_start(s->ctx, s->machine->ops->protocol);
    }
    return true;
}

/* The stream's user. */

static void session_on_open(void *ctx)
{
    struct http_session *s = ctx;
    (void)snprintf(s->peer, sizeof(s->peer), "%s", stream_peer(s->stream));
    (void)snprintf(s->peer_address, sizeof(s->peer_address), "%s", stream_peer_address(s->stream));
    s->host.is_tls = stream_is_tls(s->stream);
    s->host.tls_version = stream_tls_version(s->stream);
    if (s->server != NULL && s->server->draining) {
        session_end(s, "drain", false);
    }
}

static size_t session_on_data(void *ctx, struct span bytes)
{
    struct http_session *s = ctx;
    if (s->ending) {
        return bytes.len;
    }
    if (s->machine == NULL && !session_detect(s, bytes)) {
        return s->ending ? bytes.len : 0;
    }
    size_t used = 0;
    s->busy = true;
    while (used < bytes.len && !s->ending && !stream_above_high_water(s->stream)) {
        size_t took = 0;
        int rc = s->machine->ops->feed(s->machine, span_make(bytes.data + used, bytes.len - used),
                                       &took);
        used += took;
        if (rc != 0) {
            session_end(s, "error", true);
        }
        session_push(s);
        if (took == 0) {
            break;
        }
    }
    s->bytes_in += used;
    s->stalled = used < bytes.len;
    session_settle(s, used > 0);
    return s->ending ? bytes.len : used;
}

static void session_on_drain(void *ctx)
{
    struct http_session *s = ctx;
    if (s->ending || s->machine == NULL) {
        return;
    }
    session_on_output(s);
}

static void session_on_deadline(void *ctx)
{
    struct http_session *s = ctx;
    if (s->ending) {
        return;
    }
    s->end = "timeout";
    if (s->machine == NULL) {
        session_end(s, "timeout", false);
        return;
    }
    s->armed = false;
    s->busy = true;
    s->machine->ops->timeout(s->machine);
    session_settle(s, false);
}

static const char *session_end_text(int status)
{
    switch (status) {
    case 0:
        return "closed";
    case ERR_CLOSED:
        return "eof";
    case ERR_TIMEOUT:
        return "timeout";
    case ERR_PROTO:
    case ERR_DENIED:
        return "tls";
    default: /* error codes are no enum of their own: every other one is the network's */
        return "error";
    }
}

/* Tells the handler that it is over: once, in on_close or when the server is freed. */
static void session_finish(struct http_session *s)
{
    if (s->finished) {
        return;
    }
    s->finished = true;
    s->ending = true;
    const char *protocol = "http1";
    uint64_t requests = 0;
    if (s->machine != NULL) {
        protocol = s->machine->ops->protocol;
        requests = s->machine->requests;
        s->machine->ops->free(s->machine);
        s->machine = NULL;
    } else if (s->handler->on_session_start != NULL) {
        s->handler->on_session_start(s->ctx, protocol); /* it ended before it said a word */
    }
    if (s->handler->on_session_end != NULL) {
        s->handler->on_session_end(s->ctx, protocol, s->peer, requests, s->bytes_in,
                                   loop_now_ms(s->loop) - s->start_ms, s->end,
                                   stream_tls_version(s->stream));
    }
}

static void session_unlink(struct http_session *s)
{
    struct http_server *server = s->server;
    s->server = NULL;
    if (server == NULL) {
        return;
    }
    if (s->prev != NULL) {
        s->prev->next = s->next;
    } else {
        server->first = s->next;
    }
    if (s->next != NULL) {
        s->next->prev = s->prev;
    }
    server->count--;
}

static void session_on_close(void *ctx, int status, const char *why)
{
    (void)why;
    struct http_session *s = ctx;
    if (s->end == NULL) {
        s->end = session_end_text(status);
    }
    session_finish(s);
    session_unlink(s);
    mem_free(s);
}

static const struct stream_ops session_stream_ops = {
    .on_open = session_on_open,
    .on_data = session_on_data,
    .on_drain = session_on_drain,
    .on_deadline = session_on_deadline,
    .on_close = session_on_close,
};

static int session_start(struct http_server *server, struct loop *loop, uv_stream_t *listener,
                         struct tls_context *tls, const struct http_handler *handler, void *ctx,
                         const struct http_limits *limits)
{
    struct http_session *s = mem_zero(sizeof(*s));
    s->loop = loop;
    s->handler = handler;
    s->ctx = ctx;
    s->limits = http_limits_filled(limits);
    s->start_ms = loop_now_ms(loop);
    s->host = (struct http_host){
        .handler = handler,
        .handler_ctx = ctx,
        .peer = s->peer,
        .peer_address = s->peer_address,
        .max_requests = s->limits.max_requests,
        .bodies = server != NULL ? &server->bodies : NULL,
        .on_output = session_on_output,
        .on_abort = session_on_abort,
        .wall_ms = session_wall_ms,
        .ctx = s,
    };
    int rc = stream_accept(loop, listener, tls, &session_stream_ops, s, NULL, &s->stream);
    if (rc != 0) {
        mem_free(s);
        return rc;
    }
    /* Covers the TLS handshake and the first request's head. */
    stream_deadline(s->stream, s->limits.head_timeout_ms);
    if (server != NULL) {
        s->server = server;
        s->next = server->first;
        if (server->first != NULL) {
            server->first->prev = s;
        }
        server->first = s;
        server->count++;
    }
    return 0;
}

int http_session_accept(struct loop *loop, uv_stream_t *listener, struct tls_context *tls,
                        const struct http_handler *handler, void *ctx,
                        const struct http_limits *limits)
{
    return session_start(NULL, loop, listener, tls, handler, ctx, limits);
}

struct http_server *http_server_new(struct loop *loop, const struct http_handler *handler,
                                    void *ctx, const struct http_limits *limits)
{
    struct http_server *server = mem_zero(sizeof(*server));
    server->loop = loop;
    server->handler = handler;
    server->ctx = ctx;
    server->limits = http_limits_filled(limits);
    server->bodies.max_bytes = server->limits.max_bodies_bytes;
    return server;
}

int http_server_accept(struct http_server *server, uv_stream_t *listener, struct tls_context *tls)
{
    if (server->count >= server->limits.max_sessions) {
        return ERR_FULL;
    }
    return session_start(server, server->loop, listener, tls, server->handler, server->ctx,
                         &server->limits);
}

void http_server_drain(struct http_server *server)
{
    server->draining = true;
    for (struct http_session *s = server->first; s != NULL; s = s->next) {
        if (s->ending) {
            continue;
        }
        s->end = "drain";
        if (s->machine == NULL) {
            session_end(s, "drain", false);
            continue;
        }
        s->machine->ops->drain(s->machine);
    }
}

size_t http_server_sessions(const struct http_server *server)
{
    return server->count;
}

void http_server_free(struct http_server **server)
{
    if (*server == NULL) {
        return;
    }
    while ((*server)->first != NULL) {
        struct http_session *s = (*server)->first;
        s->end = s->end != NULL ? s->end : "shutdown";
        session_unlink(s);
        session_finish(s);
        stream_abort(s->stream);
    }
    mem_free(*server);
    *server = NULL;
}
