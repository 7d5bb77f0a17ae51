#include "gateway/http2.h"

#include "gateway/base/clock.h"

#include <nghttp2/nghttp2.h>

#include <stdio.h>

/* Invariants several paths keep:
 * - An exchange lives from on_begin_headers to on_stream_close, however early the handler answered;
 * it is in `first`'s list and is the stream's user data all that time.
 * - Handlers are called from inside nghttp2's callbacks: they may submit, never feed or free.
 * - `body_total` is the sum of the body bytes held by unanswered exchanges.
 *
 *     begin_headers --END_HEADERS--> announced --END_STREAM--> complete --http_reply--> replied -->
 * stream closed */

#define HTTP2_STREAM_WINDOW (1 << 20)
#define HTTP2_CONNECTION_WINDOW (4 << 20)
/* Bodies of one connection together; a stream that would pass this is refused and may be tried
 * again. */
#define HTTP2_BODIES_MAX_BYTES (192u * 1024u * 1024u)
/* Streams a peer may have reset (or made us reset) beyond those answered: CVE-2023-44487,
 * CVE-2025-8671. */
#define HTTP2_RESETS_MAX 200
/* What is read and dropped of a request that was answered before its end. */
#define HTTP2_LINGER_BYTES_MAX (64u * 1024u * 1024u)
#define HTTP2_ANSWER_MAX_BYTES (64u * 1024u * 1024u)

struct http2_exchange {
    struct http_exchange base;
    struct http2_exchange *next;
    struct http2_exchange *prev;
    int32_t stream_id;
    int refuse_status; /* the head is refused by ourselves */
    bool head_done;
    bool complete;     /* END_STREAM was received */
    bool dropping;     /* too large: further body bytes are thrown away */
    size_t dropped;    /* body bytes after the answer */
    size_t counted;    /* its part of body_total; the handler may have taken the body itself */
    struct buf answer; /* body of the answer, consumed as it leaves */
};

struct http2 {
    struct http_machine machine;
    nghttp2_session *session;
    struct http2_exchange *first;
    size_t body_total;
    uint64_t answered;
    uint64_t resets;
    bool draining;
    bool failed; /* nothing more is read or written */
};

static struct http2 *http2_of(struct http_machine *machine)
{
    return (struct http2 *)machine;
}

static void http2_notify(struct http2 *h)
{
    h->machine.host->on_output(h->machine.host->ctx);
}

/* Exchanges. */

static struct http2_exchange *http2_exchange_new(struct http2 *h, int32_t stream_id)
{
    struct http2_exchange *exchange = mem_try(sizeof(*exchange));
    if (exchange == NULL) {
        return NULL;
    }
    *exchange = (struct http2_exchange){.stream_id = stream_id, .next = h->first};
    http_exchange_init(&exchange->base, &h->machine, 2);
    buf_init(&exchange->answer, HTTP2_ANSWER_MAX_BYTES);
    if (h->first != NULL) {
        h->first->prev = exchange;
    }
    h->first = exchange;
    return exchange;
}

/* The body is not needed any more: answered, refused or gone. */
static void http2_drop_body(struct http2 *h, struct http2_exchange *exchange)
{
    h->body_total -= exchange->counted;
    exchange->counted = 0;
    http_exchange_uncharge(&exchange->base);
    buf_release(&exchange->base.request.body);
}

static void http2_exchange_free(struct http2 *h, struct http2_exchange *exchange)
{
    if (exchange->prev != NULL) {
        exchange->prev->next = exchange->next;
    } else {
        h->first = exchange->next;
    }
    if (exchange->next != NULL) {
        exchange->next->prev = exchange->prev;
    }
    http2_drop_body(h, exchange);
    http_exchange_release(&exchange->base);
    buf_release(&exchange->answer);
    mem_free(exchange);
}

static void http2_fail(struct http2 *h)
{
    h->failed = true;
    h->machine.host->on_abort(h->machine.host->ctx);
}

/* Answers. */

static ssize_t http2_read_answer(nghttp2_session *session, int32_t stream_id, uint8_t *room,
                                 size_t room_bytes, uint32_t *flags, nghttp2_data_source *source,
                                 void *user)
{
    (void)session;
    (void)stream_id;
    (void)user;
    struct buf *answer = source->ptr;
    size_t count = buf_len(answer) < room_bytes ? buf_len(answer) : room_bytes;
    if (count > 0) {
        memcpy(room, buf_span(answer).data, count);
        buf_consume(answer, count);
    }
    if (buf_len(answer) == 0) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        buf_release(answer);
    }
    return (ssize_t)count;
}

static nghttp2_nv http2_nv(struct span name, struct span value)
{
    /* nghttp2 copies what it is given here and does not write to it; its type has no const. */
    return (nghttp2_nv){.name = (uint8_t *)name.data,
                        .value = (uint8_t *)value.data,
                        .namelen = name.len,
                        .valuelen = value.len,
                        .flags = NGHTTP2_NV_FLAG_NONE};
}

/* Fields of one connection have no meaning in HTTP/2 (RFC 9113 8.2.2). */
static bool http2_field_forbidden(struct span name)
{
    return span_eq(name, SPAN_LIT("connection")) || span_eq(name, SPAN_LIT("keep-alive")) ||
           span_eq(name, SPAN_LIT("transfer-encoding")) || span_eq(name, SPAN_LIT("upgrade"));
}

/* The value with control bytes replaced; a copy in the arena only when there are any. */
static struct span http2_clean(struct http2_exchange *exchange, struct span value)
{
    for (size_t i = 0; i < value.len; i++) {
        unsigned char byte = (unsigned char)value.data[i];
        if ((byte >= 0x20 || byte == '\t') && byte != 0x7f) {
            continue;
        }
        struct span copy = arena_dup(&exchange->base.request.arena, value);
        if (copy.data == NULL) {
            return SPAN_LIT("?");
        }
        char *text = (char *)copy.data; /* the copy is ours */
        for (size_t j = i; j < copy.len; j++) {
            unsigned char other = (unsigned char)text[j];
            text[j] = (other < 0x20 && other != '\t') || other == 0x7f ? '?' : text[j];
        }
        return copy;
    }
    return value;
}

static int http2_submit(struct http2 *h, struct http2_exchange *exchange, int status,
                        const struct http_header *headers, size_t header_count, struct span body)
{
    char status_text[16];
    char length_text[24];
    char date[CLOCK_TEXT_MAX];
    (void)snprintf(status_text, sizeof(status_text), "%d", status);
    (void)snprintf(length_text, sizeof(length_text), "%zu", body.len);
    clock_http(h->machine.host->wall_ms(h->machine.host->ctx), date);
    nghttp2_nv *fields = mem_alloc((header_count + 3) * sizeof(*fields));
    size_t count = 0;
    fields[count++] = http2_nv(SPAN_LIT(":status"), span_of(status_text));
    fields[count++] = http2_nv(SPAN_LIT("date"), span_of(date));
    if (status != 204 && status != 304) {
        fields[count++] = http2_nv(SPAN_LIT("content-length"), span_of(length_text));
    }
    for (size_t i = 0; i < header_count; i++) {
        if (!http2_field_forbidden(headers[i].name)) {
            fields[count++] = http2_nv(headers[i].name, http2_clean(exchange, headers[i].value));
        }
    }
    nghttp2_data_provider provider = {.source = {.ptr = &exchange->answer},
                                      .read_callback = http2_read_answer};
    int rc = nghttp2_submit_response(h->session, exchange->stream_id, fields, count,
                                     buf_len(&exchange->answer) > 0 ? &provider : NULL);
    mem_free(fields);
    return rc;
}

static void http2_reply(struct http_exchange *base, int status, const struct http_header *headers,
                        size_t header_count, struct span body)
{
    struct http2_exchange *exchange = (struct http2_exchange *)base;
    struct http2 *h = http2_of(base->machine);
    if (h->failed) {
        return;
    }
    h->answered++;
    int rc = 0;
    if (body.len > 0 && http_answer_has_body(base->request.method, status)) {
        rc = buf_append(&exchange->answer, body);
    }
    if (rc == 0) {
        rc = http2_submit(h, exchange, status, headers, header_count, body);
    }
    /* `body` and `headers` may have pointed into what goes now. */
    http2_drop_body(h, exchange);
    if (rc != 0) {
        http2_fail(h);
        return;
    }
    http2_notify(h);
}

static void http2_abort(struct http_exchange *base)
{
    http2_fail(http2_of(base->machine));
}

/* An answer of our own to a head we refuse. */
static void http2_refuse(struct http2_exchange *exchange, int status, const char *detail)
{
    char room[HTTP_PROBLEM_MAX];
    struct span body = http_problem_text(status, detail, room);
    const struct http_header headers[] = {
        {.name = SPAN_LIT("content-type"), .value = SPAN_LIT("application/problem+json")}};
    exchange->base.replied = true;
    http2_reply(&exchange->base, status, headers, 1, body);
}

/* Requests. */

static void http2_too_large(struct http2 *h, struct http2_exchange *exchange)
{
    exchange->dropping = true;
    http2_drop_body(h, exchange);
    http_exchange_too_large(&exchange->base);
}

/* A peer that waits for it is told to send the body (RFC 9110 10.1.1). */
static int http2_continue(struct http2 *h, struct http2_exchange *exchange)
{
    struct span expect = http_request_header(&exchange->base.request, "expect");
    if (exchange->complete || !span_ieq(expect, SPAN_LIT("100-continue"))) {
        return 0;
    }
    nghttp2_nv fields[] = {http2_nv(SPAN_LIT(":status"), SPAN_LIT("100"))};
    return nghttp2_submit_headers(h->session, NGHTTP2_FLAG_NONE, exchange->stream_id, NULL, fields,
                                  1, NULL);
}

static int http2_head_complete(struct http2 *h, struct http2_exchange *exchange, bool ends)
{
    struct http_request *request = &exchange->base.request;
    exchange->head_done = true;
    exchange->complete = ends;
    if (request->authority.len == 0) {
        request->authority = http_request_header(request, "host");
    }
    if (exchange->refuse_status == 0 && request->path.len == 0) {
        exchange->refuse_status = 400; /* CONNECT, or a target that is no path */
    }
    if (exchange->refuse_status != 0) {
        http2_refuse(exchange, exchange->refuse_status,
                     exchange->refuse_status == 431 ? "The request has too many header fields."
                                                    : "The request target is not a path.");
        return 0;
    }
    if (!http_exchange_announce(&exchange->base)) {
        return 0;
    }
    uint64_t length = 0;
    struct span length_text = http_request_header(request, "content-length");
    if (length_text.data != NULL && span_to_u64(length_text, UINT64_MAX, &length) == 0 &&
        length > exchange->base.body_limit) {
        http2_too_large(h, exchange);
        return 0;
    }
    return http2_continue(h, exchange);
}

static void http2_request_complete(struct http2 *h, struct http2_exchange *exchange)
{
    exchange->complete = true;
    if (exchange->base.announced && !exchange->base.replied && !exchange->dropping) {
        const struct http_host *host = h->machine.host;
        host->handler->on_request(host->handler_ctx, &exchange->base.request);
    }
}

/* Counts a stream lost by reset; true when the peer has gone too far. */
static bool http2_reset_flood(struct http2 *h)
{
    h->resets++;
    return h->resets > HTTP2_RESETS_MAX + h->answered / 4;
}

/* nghttp2's callbacks. */

static int http2_on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *h = user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) {
        return 0;
    }
    struct http2_exchange *exchange = http2_exchange_new(h, frame->hd.stream_id);
    if (exchange == NULL) {
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    int rc = nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, exchange);
    if (rc != 0) {
        http2_exchange_free(h, exchange);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return 0;
}

static void http2_pseudo(struct http2_exchange *exchange, struct span name, struct span value)
{
    struct http_request *request = &exchange->base.request;
    if (span_eq(name, SPAN_LIT(":method"))) {
        request->method = value;
    } else if (span_eq(name, SPAN_LIT(":authority"))) {
        request->authority = value;
    } else if (span_eq(name, SPAN_LIT(":path")) &&
               http_exchange_target(&exchange->base, value) != 0) {
        exchange->refuse_status = 400;
    }
}

static int http2_on_header(nghttp2_session *session, const nghttp2_frame *frame,
                           const uint8_t *name, size_t name_len, const uint8_t *value,
                           size_t value_len, uint8_t flags, void *user)
{
    (void)flags;
    (void)user;
    struct http2_exchange *exchange = nghttp2_session_get_stream_user_data(session,
                                                                           frame->hd.stream_id);
    if (exchange == NULL || exchange->head_done || exchange->refuse_status != 0) {
        return 0; /* a trailer, or refused already */
    }
    struct arena *arena = &exchange->base.request.arena;
    struct span kept_name = arena_dup(arena, span_make((const char *)name, name_len));
    struct span kept_value = arena_dup(arena, span_make((const char *)value, value_len));
    if (kept_name.data == NULL || kept_value.data == NULL) {
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    if (name_len > 0 && name[0] == ':') {
        http2_pseudo(exchange, kept_name, kept_value);
        return 0;
    }
    int rc = http_exchange_header(&exchange->base, (char *)kept_name.data, kept_name.len,
                                  kept_value);
    if (rc == ERR_LIMIT) {
        exchange->refuse_status = 431;
    } else if (rc != 0) {
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return 0;
}

static int http2_on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *h = user;
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
        if (http2_reset_flood(h)) {
            return nghttp2_session_terminate_session(session, NGHTTP2_ENHANCE_YOUR_CALM);
        }
        return 0;
    }
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
        return 0;
    }
    struct http2_exchange *exchange = nghttp2_session_get_stream_user_data(session,
                                                                           frame->hd.stream_id);
    if (exchange == NULL) {
        return 0;
    }
    bool ends = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    if (!exchange->head_done) {
        int rc = http2_head_complete(h, exchange, ends);
        if (rc != 0) {
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        }
    }
    if (ends) {
        http2_request_complete(h, exchange);
    }
    return h->failed ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

/* Refuses a stream whose body there is no room for: nothing was processed, the peer may try again.
 */
static int http2_no_room(struct http2 *h, struct http2_exchange *exchange)
{
    exchange->dropping = true;
    http_exchange_gone(&exchange->base);
    http2_drop_body(h, exchange);
    return nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, exchange->stream_id,
                                     NGHTTP2_REFUSED_STREAM);
}

/* The answer is given and the peer still sends. RFC 9113 8.1 lets us reset the stream at once, but
 * clients (curl 7.88) then lose the answer: a while longer the bytes are taken and dropped. */
static int http2_drop_data(struct http2 *h, struct http2_exchange *exchange, size_t len)
{
    size_t before = exchange->dropped;
    exchange->dropped += len;
    if (before > HTTP2_LINGER_BYTES_MAX || exchange->dropped <= HTTP2_LINGER_BYTES_MAX) {
        return 0;
    }
    return nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, exchange->stream_id,
                                     NGHTTP2_NO_ERROR);
}

static int http2_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id,
                         const uint8_t *data, size_t len, void *user)
{
    (void)flags;
    struct http2 *h = user;
    struct http2_exchange *exchange = nghttp2_session_get_stream_user_data(session, stream_id);
    if (exchange == NULL) {
        return 0;
    }
    if (exchange->dropping || exchange->base.replied) {
        return http2_drop_data(h, exchange, len) == 0 ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    struct buf *body = &exchange->base.request.body;
    if (len > exchange->base.body_limit - buf_len(body)) {
        http2_too_large(h, exchange);
        return h->failed ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
    }
    if (h->body_total + len > HTTP2_BODIES_MAX_BYTES ||
        http_exchange_body(&exchange->base, span_make((const char *)data, len)) != 0) {
        return http2_no_room(h, exchange) == 0 ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    h->body_total += len;
    exchange->counted += len;
    return 0;
}

static int http2_on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *h = user;
    if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code != NGHTTP2_NO_ERROR) {
        if (http2_reset_flood(h)) {
            return nghttp2_session_terminate_session(session, NGHTTP2_ENHANCE_YOUR_CALM);
        }
    }
    return 0;
}

static int http2_on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                                 void *user)
{
    (void)error_code;
    struct http2 *h = user;
    struct http2_exchange *exchange = nghttp2_session_get_stream_user_data(session, stream_id);
    if (exchange != NULL) {
        (void)nghttp2_session_set_stream_user_data(session, stream_id,
                                                   NULL); /* it exists until return */
        http_exchange_gone(&exchange->base);
        http2_exchange_free(h, exchange);
    }
    return 0;
}

/* The machine. */

static int http2_feed(struct http_machine *machine, struct span bytes, size_t *out_used)
{
    struct http2 *h = http2_of(machine);
    *out_used = bytes.len;
    if (h->failed) {
        return 0;
    }
    ssize_t used = nghttp2_session_mem_recv(h->session, (const uint8_t *)bytes.data, bytes.len);
    if (used == NGHTTP2_ERR_NOMEM) {
        return ERR_NOMEM;
    }
    /* Protocol errors are answered by nghttp2 itself with GOAWAY; what comes out here is beyond
     * that (no preface, floods). */
    return used < 0 && !h->failed ? ERR_PROTO : 0;
}

static int http2_output(struct http_machine *machine, struct span *out)
{
    struct http2 *h = http2_of(machine);
    *out = (struct span){.data = NULL, .len = 0};
    if (h->failed) {
        return 0;
    }
    const uint8_t *data = NULL;
    ssize_t len = nghttp2_session_mem_send(h->session, &data);
    if (len < 0) {
        return len == NGHTTP2_ERR_NOMEM ? ERR_NOMEM : ERR_PROTO;
    }
    *out = span_make((const char *)data, (size_t)len);
    return 0;
}

static enum http_phase http2_phase(const struct http_machine *machine)
{
    const struct http2 *h = (const struct http2 *)machine;
    nghttp2_session *session = h->session;
    if (h->failed ||
        (nghttp2_session_want_read(session) == 0 && nghttp2_session_want_write(session) == 0)) {
        return HTTP_PHASE_DONE;
    }
    if (h->draining && h->first == NULL && nghttp2_session_want_write(session) == 0) {
        return HTTP_PHASE_DONE;
    }
    enum http_phase phase = HTTP_PHASE_IDLE;
    for (const struct http2_exchange *e = h->first; e != NULL; e = e->next) {
        if (!e->complete && !e->base.replied) {
            return HTTP_PHASE_BODY;
        }
        if (!e->base.replied) {
            phase = HTTP_PHASE_WAIT;
        }
    }
    return phase;
}

static void http2_timeout(struct http_machine *machine)
{
    struct http2 *h = http2_of(machine);
    /* GOAWAY, and every stream is closed; on_stream_close or free tells the handler. */
    if (nghttp2_session_terminate_session(h->session, NGHTTP2_NO_ERROR) != 0) {
        http2_fail(h);
        return;
    }
    http2_notify(h);
}

static void http2_drain(struct http_machine *machine)
{
    struct http2 *h = http2_of(machine);
    if (h->draining || h->failed) {
        return;
    }
    h->draining = true;
    int32_t last = nghttp2_session_get_last_proc_stream_id(h->session);
    if (nghttp2_submit_goaway(h->session, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL, 0) !=
        0) {
        http2_fail(h);
        return;
    }
    http2_notify(h);
}

static void http2_free(struct http_machine *machine)
{
    struct http2 *h = http2_of(machine);
    h->failed = true; /* a handler called below must not submit */
    while (h->first != NULL) {
        http_exchange_gone(&h->first->base);
        http2_exchange_free(h, h->first);
    }
    nghttp2_session_del(h->session);
    mem_free(h);
}

static const struct http_machine_ops http2_ops = {
    .protocol = "h2",
    .feed = http2_feed,
    .output = http2_output,
    .phase = http2_phase,
    .timeout = http2_timeout,
    .drain = http2_drain,
    .reply = http2_reply,
    .abort = http2_abort,
    .free = http2_free,
};

static nghttp2_session *http2_session_new(struct http2 *h)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    nghttp2_session *session = NULL;
    if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0) {
        nghttp2_session_callbacks_del(callbacks);
        return NULL;
    }
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, http2_on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, http2_on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, http2_on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, http2_on_data);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, http2_on_frame_send);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, http2_on_stream_close);
    nghttp2_option_set_no_closed_streams(option, 1);
    if (nghttp2_session_server_new2(&session, callbacks, h, option) != 0) {
        session = NULL;
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    return session;
}

static int http2_settings(struct http2 *h)
{
    nghttp2_settings_entry entries[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, (uint32_t)h->machine.host->max_requests},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, HTTP2_STREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HTTP_HEAD_BYTES_MAX},
        {NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 0},
    };
    int rc = nghttp2_submit_settings(h->session, NGHTTP2_FLAG_NONE, entries,
                                     sizeof(entries) / sizeof(entries[0]));
    if (rc == 0) {
        rc = nghttp2_session_set_local_window_size(h->session, NGHTTP2_FLAG_NONE, 0,
                                                   HTTP2_CONNECTION_WINDOW);
    }
    return rc;
}

struct http_machine *http2_new(const struct http_host *host)
{
    ASSERT(host->max_requests > 0);
    struct http2 *h = mem_zero(sizeof(*h));
    h->machine = (struct http_machine){.ops = &http2_ops, .host = host};
    h->session = http2_session_new(h);
    if (h->session == NULL || http2_settings(h) != 0) {
        nghttp2_session_del(h->session);
        mem_free(h);
        return NULL;
    }
    return &h->machine;
}
