#include "backends/graph.h"

#include "backends/rest.h"
#include "backends/token.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <inttypes.h>
#include <stdio.h>

/* One delivery:
 *
 *   start (mailbox chosen) ─► token ─► send ─► answer ─► next range or finish
 *                               ▲                └ 401: the token is forgotten, once
 *                               └────────────────┘
 *
 * Invariant: a job holds one of its mailbox's slots from deliver to finish; Graph refuses a fifth
 * request of an application to a mailbox (services.md 3.4). */

/* services.md 3.2: about 4 MB for the whole request, which is base64 here. Larger mail needs an
 * upload session. */
#define REQUEST_MAX_BYTES ((size_t)4 << 20)
#define MESSAGE_MAX_BYTES (REQUEST_MAX_BYTES / 4 * 3)
#define PARK_CONFIG_MS 60000
#define PARK_BLOCKED_MS ((int64_t)60 * 60 * 1000)
#define PARK_THROTTLED_MS 10000

struct mailbox_slot {
    const char *name;
    uint32_t running;
    int64_t parked_until_ms; /* loop time */
    bool unhealthy;          /* on_health was told so */
};

struct graph {
    struct rest_backend rest;
    struct token_source *tokens;
    struct mailbox_slot *mailboxes;
    size_t mailbox_count;
    size_t next; /* where the search for a mailbox starts, so that equals take turns */
};

struct graph_job {
    struct rest_job rest;
    struct mailbox_slot *mailbox;
    struct token_waiter waiter;
    struct buf body; /* base64 */
    struct buf url;
    struct buf authorization; /* "Bearer …" */
    char request_id[CODEC_ULID_LEN + 1];
    bool renewed;
};

static struct graph *job_graph(const struct graph_job *job)
{
    return (struct graph *)job->rest.backend;
}

/* ---- Mailboxes ---- */

static size_t mailbox_room(const struct graph *graph, const struct mailbox_slot *mailbox)
{
    uint32_t slots = graph->rest.base.conf->concurrency;
    bool parked = loop_now_ms(graph->rest.env.loop) < mailbox->parked_until_ms;
    return parked || mailbox->running >= slots ? 0 : slots - mailbox->running;
}

/* The one with the fewest requests running; of equals the next in turn. */
static struct mailbox_slot *mailbox_choose(struct graph *graph)
{
    struct mailbox_slot *best = NULL;
    for (size_t i = 0; i < graph->mailbox_count; i++) {
        struct mailbox_slot *mailbox = &graph->mailboxes[(graph->next + i) % graph->mailbox_count];
        if (mailbox_room(graph, mailbox) > 0 &&
            (best == NULL || mailbox->running < best->running)) {
            best = mailbox;
        }
    }
    graph->next = (graph->next + 1) % graph->mailbox_count;
    return best;
}

static void tell_health(struct graph *graph, struct mailbox_slot *mailbox, const char *what,
                        const struct answer *answer)
{
    const struct backend_env *env = &graph->rest.env;
    mailbox->unhealthy = strcmp(what, "ok") != 0;
    if (env->on_health != NULL) {
        env->on_health(env->ctx, graph->rest.base.conf->name, mailbox->name, what, answer->text,
                       answer->remedy);
    }
}

static int64_t park_time(const struct answer *answer)
{
    if (answer->wait_ms > 0) {
        return answer->wait_ms;
    }
    return answer->verdict == VERDICT_THROTTLED         ? PARK_THROTTLED_MS
           : answer->verdict == VERDICT_ACCOUNT_BLOCKED ? PARK_BLOCKED_MS
                                                        : PARK_CONFIG_MS;
}

static void mailbox_note(struct graph *graph, struct mailbox_slot *mailbox,
                         const struct answer *answer)
{
    if (answer->verdict == VERDICT_DELIVERED && mailbox->unhealthy) {
        tell_health(graph, mailbox, "ok", answer);
    }
    if (answer->scope != SCOPE_ACCOUNT) {
        return;
    }
    int64_t until_ms = loop_now_ms(graph->rest.env.loop) + park_time(answer);
    if (until_ms > mailbox->parked_until_ms) {
        mailbox->parked_until_ms = until_ms;
    }
    if (answer->verdict == VERDICT_ACCOUNT_BLOCKED || answer->verdict == VERDICT_CONFIG) {
        tell_health(graph, mailbox, answer->verdict == VERDICT_CONFIG ? "config" : "blocked",
                    answer);
    }
}

/* ---- The end ---- */

static void job_finish(struct graph_job *job)
{
    job->mailbox->running--;
    rest_finish(&job->rest, job->mailbox->name);
}

static void finish_all(struct graph_job *job, const struct answer *answer)
{
    mailbox_note(job_graph(job), job->mailbox, answer);
    rest_note(job->rest.backend, answer, job->mailbox->name);
    rest_answer_rest(&job->rest, answer);
    job_finish(job);
}

static void finish_own(struct graph_job *job, enum verdict verdict, const char *text)
{
    struct answer answer;
    verdict_own_answer(verdict, text, &answer);
    finish_all(job, &answer);
}

/* ---- Sending ---- */

static void job_next(struct graph_job *job);

static void job_token(struct graph_job *job)
{
    token_get(job_graph(job)->tokens, &job->waiter);
}

static void judge(struct graph_job *job, struct answer *answer)
{
    struct rest_job *rest = &job->rest;
    switch (answer->verdict) {
    case VERDICT_DELIVERED:
    case VERDICT_UNKNOWN: /* the other ranges are other requests */
        mailbox_note(job_graph(job), job->mailbox, answer);
        rest_note(rest->backend, answer, job->mailbox->name);
        rest_answer_range(rest, answer);
        job_next(job);
        return;
    case VERDICT_RECIPIENT_PERMANENT:
        if (rest->range.count > 1) {
            rest_split(rest); /* which one it was is not said */
        } else {
            rest_answer_range(rest, answer);
        }
        job_next(job);
        return;
    case VERDICT_MESSAGE_PERMANENT:
    case VERDICT_THROTTLED:
    case VERDICT_TRANSIENT:
    case VERDICT_ACCOUNT_BLOCKED:
    case VERDICT_CONFIG:
    case VERDICT_REFRESH:
        finish_all(job, answer);
        return;
    }
    UNREACHABLE();
}

static void on_sent(struct http_request *request, const struct http_result *result)
{
    struct graph_job *job = request->ctx;
    struct answer answer;
    job->rest.requesting = false;
    rest_answer(KIND_GRAPH, result, &answer);
    if (answer.verdict == VERDICT_REFRESH) {
        struct span bearer = SPAN_LIT("Bearer ");
        struct span authorization = buf_span(&job->authorization);
        token_refused(job_graph(job)->tokens,
                      span_make(authorization.data + bearer.len, authorization.len - bearer.len));
        if (!job->renewed && !job->rest.backend->stopping) {
            job->renewed = true;
            job_token(job);
            return;
        }
        answer.verdict = VERDICT_CONFIG;
    }
    judge(job, &answer);
}

/* The base64 of the message for the current range. */
static int body_write(struct graph_job *job)
{
    const struct rest_job *rest = &job->rest;
    struct buf message;
    buf_init(&message, MESSAGE_MAX_BYTES);
    int status = graph_message_write(rest->delivery, rest->range.from, rest->range.count,
                                     span_of(job->mailbox->name), &message);
    buf_reset(&job->body);
    if (status == 0) {
        status = codec_base64_encode(buf_span(&message), 0, &job->body);
    }
    buf_release(&message);
    return status;
}

static int url_write(struct graph_job *job)
{
    buf_reset(&job->url);
    int status = buf_printf(&job->url, "%s/v1.0/users/", job->rest.backend->base.conf->endpoint);
    if (status == 0) {
        status = codec_percent_encode(span_of(job->mailbox->name), &job->url);
    }
    return status == 0 ? buf_append(&job->url, SPAN_LIT("/sendMail")) : status;
}

static void job_send(struct graph_job *job)
{
    struct rest_job *rest = &job->rest;
    int status = body_write(job);
    if (status == ERR_LIMIT) {
        char text[200];
        snprintf(text, sizeof(text),
                 "The message is larger than the %zu bytes that fit into one Graph request.",
                 MESSAGE_MAX_BYTES);
        finish_own(job, VERDICT_MESSAGE_PERMANENT, text);
        return;
    }
    const char *url = status == 0 && url_write(job) == 0 ? buf_text(&job->url) : NULL;
    if (url == NULL) {
        finish_own(job, VERDICT_TRANSIENT, "There is no memory for the request.");
        return;
    }
    rest->request = (struct http_request){
        .method = "POST",
        .url = url,
        .body = buf_span(&job->body),
    };
    http_client_request_header(&rest->request, SPAN_LIT("Authorization"),
                               buf_span(&job->authorization));
    http_client_request_header(&rest->request, SPAN_LIT("Content-Type"), SPAN_LIT("text/plain"));
    http_client_request_header(&rest->request, SPAN_LIT("Accept"), SPAN_LIT("application/json"));
    http_client_request_header(&rest->request, SPAN_LIT("client-request-id"),
                               span_of(job->request_id));
    rest_request(rest, true, on_sent);
}

static void on_token(struct token_waiter *waiter, struct span token, const struct answer *why)
{
    struct graph_job *job = waiter->ctx;
    if (token.len == 0) {
        finish_all(job, why);
        return;
    }
    buf_reset(&job->authorization);
    if (buf_append(&job->authorization, SPAN_LIT("Bearer ")) != 0 ||
        buf_append(&job->authorization, token) != 0) {
        finish_own(job, VERDICT_TRANSIENT, "There is no memory for the request.");
        return;
    }
    job_send(job);
}

/* Asks for the token anew for each range: it may have ended meanwhile. */
static void job_next(struct graph_job *job)
{
    if (!rest_next(&job->rest)) {
        /* Everybody has an answer, unless the backend is being stopped. */
        finish_own(job, VERDICT_TRANSIENT, "The gateway is stopping.");
        return;
    }
    job->renewed = false;
    job_token(job);
}

static void job_start(struct rest_job *rest)
{
    struct graph_job *job = (struct graph_job *)rest;
    const struct backend_conf *conf = rest->backend->base.conf;
    if (conf->message_bytes > 0 && rest->delivery->body.len > conf->message_bytes) {
        char text[120];
        snprintf(text, sizeof(text), "The message is larger than %" PRIu64 " bytes.",
                 conf->message_bytes);
        finish_own(job, VERDICT_MESSAGE_PERMANENT, text);
        return;
    }
    rest_push(rest, 0, rest->delivery->recipient_count);
    job_next(job);
}

static bool job_stop_waiting(struct rest_job *rest)
{
    struct graph_job *job = (struct graph_job *)rest;
    token_cancel(job_graph(job)->tokens, &job->waiter);
    job->mailbox->running--;
    return true;
}

static void job_free(struct rest_job *rest)
{
    struct graph_job *job = (struct graph_job *)rest;
    buf_release(&job->body);
    buf_release(&job->url);
    buf_release(&job->authorization);
    mem_free(job);
}

/* ---- The backend ---- */

static size_t graph_room(const struct backend *base)
{
    const struct graph *graph = (const struct graph *)base;
    size_t room = 0;
    for (size_t i = 0; rest_open(&graph->rest) && i < graph->mailbox_count; i++) {
        room += mailbox_room(graph, &graph->mailboxes[i]);
    }
    return room;
}

static int graph_deliver(struct backend *base, struct delivery *delivery)
{
    struct graph *graph = (struct graph *)base;
    struct mailbox_slot *mailbox = mailbox_choose(graph);
    if (mailbox == NULL) {
        return ERR_FULL;
    }
    struct graph_job *job = mem_zero(sizeof(*job));
    mailbox->running++;
    job->mailbox = mailbox;
    job->waiter.on_token = on_token;
    job->waiter.ctx = job;
    buf_init(&job->body, REQUEST_MAX_BYTES);
    buf_init(&job->url, 4096);
    buf_init_secret(&job->authorization, (size_t)64 << 10);
    codec_ulid(clock_wall_ms(), job->request_id);
    rest_begin(&graph->rest, &job->rest, delivery);
    return 0;
}

static void graph_free(struct rest_backend *rest)
{
    struct graph *graph = (struct graph *)rest;
    token_source_free(&graph->tokens);
    mem_free(graph->mailboxes);
    mem_free(graph);
}

static const struct rest_ops graph_rest_ops = {
    .start = job_start,
    .stop_waiting = job_stop_waiting,
    .job_free = job_free,
    .backend_free = graph_free,
};

static int conf_check(const struct backend_conf *conf, struct err *err)
{
    struct span endpoint = span_of(conf->endpoint != NULL ? conf->endpoint : "");
    if (!span_starts(endpoint, SPAN_LIT("https://")) || span_ends(endpoint, SPAN_LIT("/"))) {
        return err_set(err, ERR_INVAL,
                       "Backend \"%s\": endpoint must start with https:// and not end in a slash.",
                       conf->name);
    }
    if (conf->mailbox_count == 0) {
        return err_set(err, ERR_INVAL, "Backend \"%s\" needs at least one mailbox.", conf->name);
    }
    return 0;
}

static int graph_open(const struct backend_env *env, const struct backend_conf *conf,
                      struct backend **out, struct err *err)
{
    int status = conf_check(conf, err);
    if (status != 0) {
        return status;
    }
    struct graph *graph = mem_zero(sizeof(*graph));
    rest_backend_init(&graph->rest, &backend_graph_ops, &graph_rest_ops, env, conf, 0);
    status = token_source_new(env->loop, graph->rest.client, conf->credential, TOKEN_SCOPE_GRAPH,
                              &graph->tokens, err);
    if (status != 0) {
        http_client_close(&graph->rest.client, NULL, NULL);
        mem_free(graph);
        return status;
    }
    graph->mailboxes = mem_zero(conf->mailbox_count * sizeof(*graph->mailboxes));
    graph->mailbox_count = conf->mailbox_count;
    for (size_t i = 0; i < conf->mailbox_count; i++) {
        graph->mailboxes[i].name = conf->mailboxes[i];
    }
    *out = &graph->rest.base;
    return 0;
}

const struct backend_ops backend_graph_ops = {
    .type = "graph",
    .open = graph_open,
    .room = graph_room,
    .deliver = graph_deliver,
    .close = rest_close,
};
