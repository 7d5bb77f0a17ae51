/* The HTTP side of heave-load: one worker is one HTTP/1.1 connection, kept alive, with one request
 * on its way at a time.
 *
 *   CONNECTING -> IDLE -> ASKING (request leaves, response is read) -> IDLE
 *                                   '-> CLOSING (one per connection, or the server closes)
 *
 * The gateway gives every message its Message-ID; subjects are ours and differ. With --retry the
 * request carries an Idempotency-Key, so that an answer that was lost makes no second message. */
#include "bench/load/http_reply.h"
#include "bench/load/load.h"
#include "gateway/base/codec.h"

#include <inttypes.h>

enum http_step {
    HTTP_CONNECTING,
    HTTP_IDLE,
    HTTP_ASKING,
    HTTP_CLOSING,
};

struct http_worker {
    struct load_worker base;
    enum http_step step;
    struct http_reply reply;
    bool opened;
    bool unsettled;      /* a message was given to us and has no result yet */
    bool waiting;        /* load_next() was called, and neither send nor end has come since */
    bool ending;         /* nothing comes after this connection */
    bool whole;          /* the request has been written */
    const char *failure; /* kind of what we ended the connection for, or NULL */
};

static const struct stream_ops STREAM_OPS;

static const struct load_options *options_of(const struct http_worker *w)
{
    return w->base.load->options;
}

static void go_on(struct http_worker *w)
{
    w->waiting = true;
    load_next(&w->base);
}

/* Ends the connection; on_close settles what is in hand. */
static void hang_up(struct http_worker *w, const char *failure)
{
    w->step = HTTP_CLOSING;
    w->failure = failure;
    stream_abort(w->base.stream);
}

static void begin_request(struct http_worker *w)
{
    w->step = HTTP_ASKING;
    w->failure = NULL;
    http_reply_reset(&w->reply);
    stream_deadline(w->base.stream, (int64_t)options_of(w)->timeout_s * 1000);
    load_content_begin(&w->base);
    w->whole = load_content_pump(&w->base);
}

/* ---- Answers ---- */

/* The id at the end of "/v1/messages/ID". */
static struct span id_of(struct span location)
{
    size_t begin = location.len;
    while (begin > 0 && location.data[begin - 1] != '/') {
        begin--;
    }
    return span_make(location.data + begin, location.len - begin);
}

/* What every other request would meet too ends the run. */
static bool hopeless(uint32_t status)
{
    return status == 401 || status == 403 || status == 404 || status == 405;
}

static void settle(struct http_worker *w)
{
    struct load *load = w->base.load;
    w->unsettled = false;
    if (w->reply.status == 202) {
        load_accepted(&w->base, options_of(w)->recipients, id_of(http_reply_location(&w->reply)));
        return;
    }
    char kind[TALLY_KIND_MAX];
    char why[80];
    (void)snprintf(kind, sizeof(kind), "%" PRIu32, w->reply.status);
    (void)snprintf(why, sizeof(why), "The server answers with status %s.", kind);
    if (hopeless(w->reply.status)) {
        load_fatal(load, why);
    }
    bool temporary = w->reply.status == 408 || w->reply.status == 409 || w->reply.status == 429 ||
                     w->reply.status >= 500;
    load_failed(&w->base, &(struct load_failure){
                              .kind = kind,
                              .why = why,
                              .temporary = temporary,
                              .wait_ms = (int64_t)w->reply.retry_after_s * 1000,
                          });
}

static void on_answer(struct http_worker *w)
{
    bool whole = w->whole;
    if (!whole && w->reply.status == 202) {
        hang_up(w, "protocol"); /* a yes to half a request */
        return;
    }
    settle(w);
    if (!whole || w->reply.close || options_of(w)->one_per_connection) {
        w->step = HTTP_CLOSING;
        stream_close(w->base.stream); /* on_close goes on */
        return;
    }
    w->step = HTTP_IDLE;
    stream_deadline(w->base.stream, 0);
    go_on(w);
}

/* ---- The stream ---- */

static void on_open(void *ctx)
{
    struct http_worker *w = ctx;
    w->opened = true;
    begin_request(w);
}

static size_t on_data(void *ctx, struct span bytes)
{
    struct http_worker *w = ctx;
    size_t all = bytes.len;
    if (w->step != HTTP_ASKING) {
        hang_up(w, NULL); /* it answers what nobody asked */
        return all;
    }
    int rc = http_reply_step(&w->reply, &bytes);
    if (rc < 0 || (rc == STEP_DONE && bytes.len > 0)) {
        hang_up(w, "protocol");
        return all;
    }
    if (rc == STEP_DONE) {
        on_answer(w);
    }
    return all - bytes.len;
}

static void on_drain(void *ctx)
{
    struct http_worker *w = ctx;
    if (w->step == HTTP_ASKING && !w->whole) {
        stream_deadline(w->base.stream, (int64_t)options_of(w)->timeout_s * 1000);
        w->whole = load_content_pump(&w->base);
    }
}

static void on_deadline(void *ctx)
{
    hang_up(ctx, "timeout");
}

static void connect_server(struct http_worker *w);

static void settle_lost(struct http_worker *w, int status, const char *why)
{
    w->unsettled = false;
    if (w->failure == NULL) {
        load_lost(&w->base, w->opened, status, why);
        return;
    }
    bool timeout = strcmp(w->failure, "timeout") == 0;
    load_failed(&w->base, &(struct load_failure){
                              .kind = w->failure,
                              .why = timeout ? "The server did not answer in time."
                                             : "The server's answer is no HTTP/1.1 response.",
                              .temporary = true,
                          });
}

static void on_close(void *ctx, int status, const char *why)
{
    struct http_worker *w = ctx;
    w->base.stream = NULL;
    if (w->ending) {
        load_worker_over(&w->base);
        return;
    }
    if (w->waiting) {
        return; /* the server ended an idle connection; the next message opens another */
    }
    if (w->unsettled && w->step == HTTP_CLOSING && w->failure == NULL) {
        connect_server(w); /* the message came while an idle connection was being closed */
        return;
    }
    if (w->unsettled) {
        settle_lost(w, status, why);
    }
    go_on(w);
}

static const struct stream_ops STREAM_OPS = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_deadline = on_deadline,
    .on_close = on_close,
};

static void connect_server(struct http_worker *w)
{
    w->step = HTTP_CONNECTING;
    w->opened = false;
    w->failure = NULL;
    if (!load_connect(&w->base, w->base.load->tls, &STREAM_OPS)) {
        w->unsettled = false;
        go_on(w);
    }
}

/* ---- For the run ---- */

static void http_send(struct load_worker *worker)
{
    struct http_worker *w = (struct http_worker *)worker;
    w->waiting = false;
    w->unsettled = true;
    if (worker->stream == NULL) {
        connect_server(w);
    } else if (w->step == HTTP_IDLE) {
        begin_request(w);
    }
    /* Otherwise the idle connection is being closed, and on_close goes on. */
}

static void http_end(struct load_worker *worker)
{
    struct http_worker *w = (struct http_worker *)worker;
    w->waiting = false;
    w->ending = true;
    if (worker->stream == NULL) {
        load_worker_over(worker);
    } else if (w->step == HTTP_IDLE) {
        w->step = HTTP_CLOSING;
        stream_abort(worker->stream);
    }
}

static int put_authorization(struct content *content, const struct load_options *options)
{
    if (options->key != NULL) {
        return buf_printf(&content->head, "Authorization: Bearer %s\r\n", options->key);
    }
    if (options->auth == NULL) {
        return 0;
    }
    int rc = content_put_text(content, SPAN_LIT("Authorization: Basic "));
    if (rc == 0) {
        rc = codec_base64_encode(span_of(options->auth), 0, &content->head);
    }
    return rc == 0 ? content_put_text(content, SPAN_LIT("\r\n")) : rc;
}

static int put_request_line(struct load *load)
{
    const struct load_options *options = load->options;
    bool literal = strchr(options->host, ':') != NULL;
    int rc = buf_printf(&load->content.head, "POST %s HTTP/1.1\r\nHost: %s%s%s:%u\r\n",
                        options->path, literal ? "[" : "", options->host, literal ? "]" : "",
                        (unsigned)options->port);
    if (rc == 0) {
        rc = put_authorization(&load->content, options);
    }
    if (rc == 0 && options->retry) {
        rc = buf_printf(&load->content.head, "Idempotency-Key: %s-", load->run);
        if (rc == 0) {
            rc = content_put(&load->content, "#\r\n");
        }
    }
    return rc == 0 && options->one_per_connection
               ? content_put_text(&load->content, SPAN_LIT("Connection: close\r\n"))
               : rc;
}

/* The shared rest: recipients and text. */
static int put_rest(struct load *load)
{
    const struct load_options *options = load->options;
    struct buf *rest = &load->content.rest;
    int rc = buf_append(rest, SPAN_LIT("\",\"to\":["));
    for (uint64_t i = 1; rc == 0 && i <= options->recipients; i++) {
        rc = buf_append(rest, i > 1 ? SPAN_LIT(",\"") : SPAN_LIT("\""));
        if (rc == 0) {
            rc = content_put_address(rest, options->to, i, options->recipients);
        }
        if (rc == 0) {
            rc = buf_append_byte(rest, '"');
        }
    }
    if (rc == 0) {
        rc = buf_append(rest, SPAN_LIT("],\"text\":\""));
    }
    if (rc == 0) {
        rc = content_put_body(&load->content, options->size_bytes, SPAN_LIT("\\n"), 1);
    }
    return rc == 0 ? buf_append(rest, SPAN_LIT("\"}")) : rc;
}

/* The head: header fields, and the body up to and with the number. */
static int put_head(struct load *load)
{
    char start[400];
    int len = snprintf(start, sizeof(start), "{\"from\":\"%s\",\"subject\":\"Load %s, message ",
                       load->options->from, load->run);
    ASSERT(len > 0 && (size_t)len < sizeof(start));
    size_t length = (size_t)len + CONTENT_DIGITS + buf_len(&load->content.rest);
    int rc = put_request_line(load);
    if (rc == 0) {
        rc = buf_printf(&load->content.head,
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", length,
                        start);
    }
    return rc == 0 ? content_put(&load->content, "#") : rc;
}

static int http_prepare(struct load *load, struct err *err)
{
    int rc = put_rest(load);
    if (rc == 0) {
        rc = put_head(load);
    }
    if (rc == ERR_LIMIT) {
        return err_set(err, rc, "The path, the key and the addresses together are too long.");
    }
    return rc == 0 ? 0 : err_set(err, rc, "The request cannot be prepared (%s).", err_name(rc));
}

static void http_release(struct load *load)
{
    (void)load; /* everything prepared is in load->content */
}

const struct load_ops LOAD_HTTP_OPS = {
    .worker_bytes = sizeof(struct http_worker),
    .prepare = http_prepare,
    .release = http_release,
    .send = http_send,
    .end = http_end,
};
