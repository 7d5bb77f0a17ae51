#include "bench/sim/sim_graph.h"

#include "bench/sim/graph_message.h"
#include "bench/sim/jwt.h"
#include "bench/sim/rest.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define AUDIENCE "https://graph.microsoft.com"
#define MAILBOX_STATES_MAX 1024
#define BATCH_MAX 20
#define DAY_MS 86400000

/* What Graph counts per application and mailbox (services.md 3.4, 3.5). */
struct mailbox {
    struct mailbox *next;
    char app[200];
    const char *address; /* as configured */
    struct quota quota;
    uint32_t running; /* requests in flight */
    uint64_t day_recipients;
    int64_t day_start_ms;
};

struct graph {
    struct rest *rest;
    struct sim *sim;
    struct mailbox *mailboxes;
    size_t mailbox_count;
};

/* The outcome of one request, or of one item of a $batch. `code` NULL: accepted. */
struct outcome {
    int status;
    const char *code;
    const char *message;
    int64_t retry_after_s; /* negative: none */
};

static struct outcome outcome_bad(int status, const char *code, const char *message)
{
    return (struct outcome){
        .status = status, .code = code, .message = message, .retry_after_s = -1};
}

/* Who calls. Fills `jwt`, or says why not. */
static struct outcome check_token(struct rest_call *call, struct jwt *jwt)
{
    struct span token = rest_bearer(call);
    struct span key = span_make((const char *)call->sim->token_key, SIM_TOKEN_KEY_BYTES);
    if (token.len == 0) {
        return outcome_bad(401, "InvalidAuthenticationToken", "Access token is empty.");
    }
    if (jwt_read(key, token, jwt) != 0) {
        return outcome_bad(401, "InvalidAuthenticationToken",
                           "Access token validation failure. Invalid signature.");
    }
    if (!span_eq(span_of(jwt->audience), SPAN_LIT(AUDIENCE))) {
        return outcome_bad(401, "InvalidAuthenticationToken",
                           "Access token validation failure. Invalid audience.");
    }
    if (call->expired || jwt->expires_s <= clock_wall_ms() / 1000) {
        return outcome_bad(401, "InvalidAuthenticationToken",
                           "Lifetime validation failed, the token is expired.");
    }
    if (!jwt_has_role(jwt, "Mail.Send")) {
        return outcome_bad(403, "ErrorAccessDenied",
                           "Access is denied. Check credentials and try again.");
    }
    return (struct outcome){0};
}

/* The user of ".../users/{user}/sendMail", decoded into `room`; an empty span for any other path.
 * `path` may have the version in front or not. */
static struct span path_user(struct span path, char *room, size_t room_bytes)
{
    static const char *const PREFIXES[] = {"/v1.0/users/", "/beta/users/", "/users/", "users/"};
    for (size_t i = 0; i < sizeof(PREFIXES) / sizeof(PREFIXES[0]); i++) {
        struct span prefix = span_of(PREFIXES[i]);
        if (!span_istarts(path, prefix)) {
            continue;
        }
        struct span rest = span_make(path.data + prefix.len, path.len - prefix.len);
        struct span user = span_cut(&rest, '/');
        if (!span_ieq(rest, SPAN_LIT("sendMail")) &&
            !span_ieq(rest, SPAN_LIT("microsoft.graph.sendMail"))) {
            return (struct span){0};
        }
        struct buf decoded;
        buf_init(&decoded, room_bytes);
        struct span out = {0};
        if (codec_percent_decode(user, false, &decoded) == 0) {
            memcpy(room, buf_span(&decoded).data, buf_len(&decoded));
            out = span_make(room, buf_len(&decoded));
        }
        buf_release(&decoded);
        return out;
    }
    return (struct span){0};
}

/* The counters of application and mailbox, made at first use; NULL for a mailbox that is not there.
 */
static struct mailbox *find_mailbox(struct graph *graph, const char *app, struct span user)
{
    const char *address = sim_list_find(&graph->sim->conf->mailboxes, user);
    if (address == NULL) {
        return NULL;
    }
    for (struct mailbox *m = graph->mailboxes; m != NULL; m = m->next) {
        if (m->address == address && strcmp(m->app, app) == 0) {
            return m;
        }
    }
    if (graph->mailbox_count == MAILBOX_STATES_MAX) {
        return graph->mailboxes; /* as many applications as there are flags for: not reached */
    }
    struct mailbox *mailbox = mem_zero(sizeof(*mailbox));
    mailbox->address = address;
    mailbox->day_start_ms = loop_now_ms(graph->sim->loop);
    (void)snprintf(mailbox->app, sizeof(mailbox->app), "%s", app);
    int result = quota_read(span_of(graph->sim->conf->graph_quota), &mailbox->quota, NULL);
    ASSERT(result == 0); /* graph_open() has read it before */
    mailbox->next = graph->mailboxes;
    graph->mailboxes = mailbox;
    graph->mailbox_count++;
    return mailbox;
}

/* 10,000 recipients in 24 hours, counted in periods of 24 hours from the first use. */
static bool within_day(struct graph *graph, struct mailbox *mailbox, size_t recipients)
{
    uint64_t limit = graph->sim->conf->graph_daily_recipients;
    int64_t now_ms = loop_now_ms(graph->sim->loop);
    if (now_ms - mailbox->day_start_ms >= DAY_MS) {
        mailbox->day_start_ms = now_ms;
        mailbox->day_recipients = 0;
    }
    if (limit > 0 && mailbox->day_recipients + recipients > limit) {
        return false;
    }
    mailbox->day_recipients += recipients;
    return true;
}

static void record(struct graph *graph, struct mailbox *mailbox,
                   const struct graph_message *message, struct span raw)
{
    const struct ledger_message entry = {
        .service = SIM_GRAPH,
        .account = span_of(mailbox->address),
        .message_id = message->message_id,
        .recipients = message->recipients,
        .recipient_count = message->recipient_count,
        .bytes = raw.len,
    };
    uint64_t number = ledger_accept(graph->sim->ledger, &entry);
    sim_keep_body(graph->sim, SIM_GRAPH, number, raw);
}

/* The message is well formed: may this mailbox send it? */
static struct outcome submit(struct graph *graph, struct mailbox *mailbox,
                             const struct graph_message *message, struct span raw)
{
    if (message->from.len > 0 && !span_ieq(message->from, span_of(mailbox->address))) {
        return outcome_bad(
            403, "ErrorSendAsDenied",
            "The user account which was used to submit this request does not have the right to send mail "
            "on behalf of the specified sending account., Cannot submit message.");
    }
    if (!within_day(graph, mailbox, message->recipient_count)) {
        return outcome_bad(
            (int)graph->sim->conf->graph_daily_status, "ErrorExceededMessageLimit",
            "Cannot send mail. Daily Message/Recipient limit exceeded. Please try again later.");
    }
    record(graph, mailbox, message, raw);
    return (struct outcome){.status = 202, .retry_after_s = -1};
}

static struct outcome send_json(struct graph *graph, struct mailbox *mailbox, const json_t *json,
                                struct span raw)
{
    struct graph_message message;
    const struct graph_problem *problem = graph_message_json(graph->sim->conf, json, &message);
    if (problem != NULL) {
        return outcome_bad(problem->status, problem->code, problem->message);
    }
    struct outcome outcome = submit(graph, mailbox, &message, raw);
    graph_message_release(&message);
    return outcome;
}

static struct outcome send_mime(struct graph *graph, struct mailbox *mailbox, struct span body)
{
    struct graph_message message;
    const struct graph_problem *problem = graph_message_mime(graph->sim->conf, body, &message);
    if (problem != NULL) {
        return outcome_bad(problem->status, problem->code, problem->message);
    }
    struct outcome outcome = submit(graph, mailbox, &message, buf_span(&message.mime));
    graph_message_release(&message);
    return outcome;
}

/* One request's place in the mailbox's window; `concurrent`: whether it may be one too many at
 * once. */
static struct outcome within_limits(struct graph *graph, struct mailbox *mailbox, bool concurrent)
{
    const struct sim_conf *conf = graph->sim->conf;
    int64_t wait_ms = 0;
    const struct quota_window *broken = quota_take(&mailbox->quota, loop_now_ms(graph->sim->loop),
                                                   &wait_ms);
    struct outcome outcome = {0};
    if (broken != NULL) {
        outcome = outcome_bad(429, "ApplicationThrottled",
                              "Application is over its MailboxRequests limit.");
        outcome.retry_after_s = (wait_ms + 999) / 1000;
    } else if (concurrent && conf->graph_concurrency > 0 &&
               mailbox->running > conf->graph_concurrency) {
        outcome = outcome_bad(429, "ApplicationThrottled",
                              "Application is over its MailboxConcurrency limit.");
        outcome.retry_after_s = (int64_t)conf->graph_retry_after_s;
    }
    return outcome;
}

static struct outcome send_body(struct graph *graph, struct rest_call *call,
                                struct mailbox *mailbox)
{
    struct span body = buf_span(&call->request->body);
    struct span type = http_request_header(call->request, "content-type");
    if (span_istarts(type, SPAN_LIT("text/plain"))) {
        return send_mime(graph, mailbox, body);
    }
    if (!span_istarts(type, SPAN_LIT("application/json"))) {
        return outcome_bad(400, "RequestBodyRead",
                           "Content-Type must be application/json or text/plain.");
    }
    json_t *json = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    if (json == NULL) {
        return outcome_bad(400, "BadRequest", "Unable to read JSON request payload.");
    }
    struct outcome outcome = send_json(graph, mailbox, json, body);
    json_decref(json);
    return outcome;
}

static struct outcome check_user(struct graph *graph, const struct jwt *jwt, struct span user,
                                 struct mailbox **out_mailbox)
{
    if (user.len == 0) {
        return outcome_bad(400, "BadRequest", "Resource not found for the segment.");
    }
    *out_mailbox = find_mailbox(graph, jwt->app, user);
    if (*out_mailbox == NULL) {
        return outcome_bad(404, "ErrorInvalidUser", "The requested user is invalid.");
    }
    return (struct outcome){0};
}

/* Puts request ids into the reply; real clients show them to support. */
static void put_ids(struct rest_call *call, char id[REST_UUID_LEN + 1], struct span *out_client_id)
{
    rest_uuid(id);
    struct span client_id = http_request_header(call->request, "client-request-id");
    *out_client_id = client_id.data != NULL && client_id.len <= 100 ? client_id
                                                                    : span_make(id, REST_UUID_LEN);
    rest_header(call, "request-id", span_make(id, REST_UUID_LEN));
    rest_header(call, "client-request-id", *out_client_id);
}

static json_t *error_json(const char *code, const char *message, const char *id,
                          struct span client_id)
{
    char at[CLOCK_TEXT_MAX];
    clock_rfc3339(clock_wall_ms(), at);
    at[19] = '\0'; /* Graph writes seconds, without a zone */
    return json_pack("{s:{s:s, s:s, s:{s:s, s:s, s:s%}}}", "error", "code", code, "message",
                     message, "innerError", "date", at, "request-id", id, "client-request-id",
                     client_id.data, client_id.len);
}

static void conclude(struct rest_call *call, const struct outcome *outcome)
{
    char id[REST_UUID_LEN + 1];
    struct span client_id = {0};
    if (outcome->code != NULL) {
        const struct rest_error error = {.status = outcome->status,
                                         .code = outcome->code,
                                         .message = outcome->message,
                                         .retry_after_s = outcome->retry_after_s};
        rest_refuse(call, &error);
    } else if (rest_accepted(call, buf_span(&call->request->body))) {
        put_ids(call, id, &client_id);
        call->status = 202;
        rest_reply(call);
    }
}

static void send_mail(struct graph *graph, struct rest_call *call, const struct jwt *jwt)
{
    char room[400];
    struct mailbox *mailbox = NULL;
    struct span user = path_user(call->request->path, room, sizeof(room));
    struct outcome outcome = check_user(graph, jwt, user, &mailbox);
    if (outcome.code == NULL && !span_eq(call->request->method, SPAN_LIT("POST"))) {
        outcome = outcome_bad(405, "Request_BadRequest",
                              "Specified HTTP method is not allowed for the request target.");
    }
    if (outcome.code == NULL) {
        outcome = within_limits(graph, mailbox, true);
    }
    if (outcome.code == NULL) {
        outcome = send_body(graph, call, mailbox);
    }
    conclude(call, &outcome);
}

/* One item of a $batch: 0 in `status` of the outcome never leaves here. */
static struct outcome run_item(struct graph *graph, const struct jwt *jwt, const json_t *item)
{
    char room[400];
    struct mailbox *mailbox = NULL;
    const char *url = json_string_value(json_object_get(item, "url"));
    const char *method = json_string_value(json_object_get(item, "method"));
    json_t *body = json_object_get(item, "body");
    struct outcome outcome = check_user(graph, jwt, path_user(span_of(url), room, sizeof(room)),
                                        &mailbox);
    if (outcome.code == NULL &&
        (method == NULL || strcmp(method, "POST") != 0 || !json_is_object(body))) {
        outcome = outcome_bad(400, "BadRequest", "Only POST with a JSON body is possible here.");
    }
    if (outcome.code == NULL) {
        outcome = within_limits(graph, mailbox, false);
    }
    if (outcome.code != NULL) {
        return outcome;
    }
    char *raw = json_dumps(body, JSON_COMPACT);
    outcome = send_json(graph, mailbox, body, span_of(raw));
    free(raw);
    return outcome;
}

/* Whether a request this item depends on has failed (services.md 3.7). */
static bool parent_failed(const json_t *item, const json_t *answers)
{
    size_t index = 0;
    json_t *wanted = NULL;
    json_array_foreach(json_object_get(item, "dependsOn"), index, wanted)
    {
        bool good = false;
        size_t k = 0;
        json_t *answer = NULL;
        json_array_foreach(answers, k, answer)
        {
            good = good || (json_equal(json_object_get(answer, "id"), wanted) == 1 &&
                            json_integer_value(json_object_get(answer, "status")) < 300);
        }
        if (!good) {
            return true;
        }
    }
    return false;
}

static void count_item(struct graph *graph, const struct outcome *outcome)
{
    struct ledger_counts *counts = ledger_counts(graph->sim->ledger, SIM_GRAPH);
    counts->throttled += outcome->status == 429 ? 1 : 0;
    counts->rejected += outcome->code != NULL && outcome->status != 429 ? 1 : 0;
}

static json_t *answer_item(const json_t *id, const struct outcome *outcome)
{
    char text[24];
    char request_id[REST_UUID_LEN + 1];
    json_t *answer = json_pack("{s:O, s:i, s:{}}", "id", id, "status", outcome->status, "headers");
    ASSERT(answer != NULL);
    if (outcome->retry_after_s >= 0) {
        (void)snprintf(text, sizeof(text), "%" PRId64, outcome->retry_after_s);
        ASSERT(json_object_set_new(json_object_get(answer, "headers"), "Retry-After",
                                   json_string(text)) == 0);
    }
    if (outcome->code != NULL) {
        rest_uuid(request_id);
        json_t *body = error_json(outcome->code, outcome->message, request_id, span_of(request_id));
        ASSERT(json_object_set_new(answer, "body", body) == 0);
    }
    return answer;
}

static json_t *run_batch(struct graph *graph, const struct jwt *jwt, const json_t *requests)
{
    json_t *answers = json_array();
    size_t index = 0;
    json_t *item = NULL;
    json_array_foreach(requests, index, item)
    {
        struct outcome outcome = outcome_bad(424, "FailedDependency",
                                             "A request this one depends on has failed.");
        if (!parent_failed(item, answers)) {
            outcome = run_item(graph, jwt, item);
        }
        count_item(graph, &outcome);
        /* In front: clients must not rely on the order. */
        ASSERT(json_array_insert_new(answers, 0,
                                     answer_item(json_object_get(item, "id"), &outcome)) == 0);
    }
    return answers;
}

static bool batch_good(const json_t *requests)
{
    size_t count = json_array_size(requests);
    size_t index = 0;
    json_t *item = NULL;
    json_array_foreach(requests, index, item)
    {
        if (!json_is_string(json_object_get(item, "id"))) {
            return false;
        }
    }
    return count > 0 && count <= BATCH_MAX;
}

static void send_batch(struct graph *graph, struct rest_call *call, const struct jwt *jwt)
{
    char id[REST_UUID_LEN + 1];
    struct span client_id = {0};
    struct span body = buf_span(&call->request->body);
    json_t *json = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    const json_t *requests = json_object_get(json, "requests");
    if (!batch_good(requests)) {
        json_decref(json);
        struct outcome outcome = outcome_bad(400, "BadRequest", "Invalid batch payload format.");
        conclude(call, &outcome);
        return;
    }
    json_t *answers = run_batch(graph, jwt, requests);
    json_decref(json);
    if (!rest_accepted(call, body)) {
        json_decref(answers);
        return;
    }
    put_ids(call, id, &client_id);
    rest_json(call, 200, json_pack("{s:o}", "responses", answers));
    rest_reply(call);
}

static void handle(void *ctx, struct rest_call *call)
{
    struct graph *graph = ctx;
    struct jwt jwt;
    struct outcome outcome = check_token(call, &jwt);
    struct span path = call->request->path;
    if (call->too_large) {
        outcome = outcome_bad(413, "RequestEntityTooLarge", "");
    } else if (outcome.code == NULL && span_ieq(path, SPAN_LIT("/v1.0/me/sendMail"))) {
        outcome = outcome_bad(400, "BadRequest",
                              "/me request is only valid with delegated authentication flow.");
    }
    if (outcome.code != NULL) {
        conclude(call, &outcome);
    } else if (span_ieq(path, SPAN_LIT("/v1.0/$batch"))) {
        send_batch(graph, call, &jwt);
    } else {
        send_mail(graph, call, &jwt);
    }
}

/* Takes the request's place among those of its mailbox: it runs from its head to its answer. */
static size_t begin(void *ctx, struct rest_call *call)
{
    struct graph *graph = ctx;
    struct jwt jwt;
    char room[400];
    struct span user = path_user(call->request->path, room, sizeof(room));
    if (user.len > 0 && check_token(call, &jwt).code == NULL) {
        struct mailbox *mailbox = find_mailbox(graph, jwt.app, user);
        if (mailbox != NULL) {
            mailbox->running++;
            call->gauge = &mailbox->running;
        }
    }
    return (size_t)call->sim->conf->graph_max_bytes;
}

static const char *default_code(int status)
{
    if (status == 429) {
        return "TooManyRequests";
    }
    if (status == 503) {
        return "serviceNotAvailable";
    }
    return status == 401 ? "InvalidAuthenticationToken" : "ErrorInternalServerTransientError";
}

static void refuse(void *ctx, struct rest_call *call, const struct rest_error *error)
{
    (void)ctx;
    char id[REST_UUID_LEN + 1];
    struct span client_id = {0};
    put_ids(call, id, &client_id);
    if (error->status == 413) {
        call->status = 413; /* without JSON: services.md 3.6 */
        call->body = SPAN_LIT("<html><body>Request Entity Too Large</body></html>");
        rest_header(call, "content-type", SPAN_LIT("text/html"));
        return;
    }
    const char *code = error->code != NULL ? error->code : default_code(error->status);
    const char *message = error->message;
    if (message == NULL) {
        message = error->status == 429 ? "Too many requests."
                                       : "The service could not handle the request.";
    }
    if (error->status == 401) {
        rest_header(call, "www-authenticate",
                    SPAN_LIT("Bearer realm=\"\", error=\"invalid_token\""));
    }
    rest_json(call, error->status, error_json(code, message, id, client_id));
}

/* A mailbox of an application (there is one application in practice) is what Graph throttles. */
static struct span scope(void *ctx, struct rest_call *call, char *room, size_t room_bytes)
{
    (void)ctx;
    char user_room[400];
    struct span user = path_user(call->request->path, user_room, sizeof(user_room));
    int len = snprintf(room, room_bytes, "graph %.*s", (int)(user.len < 150 ? user.len : 150),
                       user.len > 0 ? user.data : "");
    return span_make(room, (size_t)len);
}

static const struct rest_ops GRAPH_OPS = {
    .service = SIM_GRAPH,
    .begin = begin,
    .handle = handle,
    .refuse = refuse,
    .scope = scope,
};

int graph_open(struct sim *sim, struct graph **out, struct err *err)
{
    struct graph *graph = mem_zero(sizeof(*graph));
    struct quota quota;
    graph->sim = sim;
    int result = quota_read(span_of(sim->conf->graph_quota), &quota, err);
    if (result == 0) {
        quota_release(&quota);
        result = rest_open(sim, &GRAPH_OPS, graph, &graph->rest, err);
    }
    if (result != 0) {
        mem_free(graph);
        return result;
    }
    *out = graph;
    return 0;
}

void graph_close(struct graph **graph)
{
    if (*graph == NULL) {
        return;
    }
    rest_close(&(*graph)->rest); /* running calls count their gauges down before these go */
    while ((*graph)->mailboxes != NULL) {
        struct mailbox *next = (*graph)->mailboxes->next;
        quota_release(&(*graph)->mailboxes->quota);
        mem_free((*graph)->mailboxes);
        (*graph)->mailboxes = next;
    }
    mem_free(*graph);
    *graph = NULL;
}

void graph_reset(struct graph *graph)
{
    for (struct mailbox *m = graph->mailboxes; m != NULL; m = m->next) {
        quota_reset(&m->quota);
        m->day_recipients = 0;
    }
}
