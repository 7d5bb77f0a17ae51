#include "backends/rest.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

void rest_error_read(struct span body, struct rest_error *out)
{
    *out = (struct rest_error){.code = ""};
    json_t *json = body.len > 0 ? json_loadb(body.data, body.len, 0, NULL) : NULL;
    const json_t *error = json_object_get(json, "error");
    if (json_is_object(error)) {
        snprintf(out->code, sizeof(out->code), "%s", text_of(error, "code"));
        snprintf(out->message, sizeof(out->message), "%s", text_of(error, "message"));
    } else if (json_is_string(error)) {
        const json_t *number = json_array_get(json_object_get(json, "error_codes"), 0);
        if (json_is_integer(number)) {
            snprintf(out->code, sizeof(out->code), "%" JSON_INTEGER_FORMAT,
                     json_integer_value(number));
        }
        snprintf(out->message, sizeof(out->message), "%s %s", json_string_value(error),
                 text_of(json, "error_description"));
    }
    json_decref(json);
}

static void answer_of_failure(enum verdict_http_kind kind, const struct http_result *result,
                              struct answer *out)
{
    bool sends = kind == KIND_ACS_SEND || kind == KIND_GRAPH;
    bool unknown = sends && result->outcome == HTTP_LOST;
    verdict_own_answer(unknown ? VERDICT_UNKNOWN : VERDICT_TRANSIENT, result->why, out);
}

void rest_answer(enum verdict_http_kind kind, const struct http_result *result, struct answer *out)
{
    if (result->outcome != HTTP_ANSWERED) {
        answer_of_failure(kind, result, out);
        return;
    }
    struct rest_error error;
    rest_error_read(result->body, &error);
    struct span code = span_of(error.code[0] != '\0' ? error.code : result->error_code);
    const struct verdict_http_row *row = verdict_http_find(kind, result->status, code,
                                                           span_of(error.message));
    *out = (struct answer){
        .verdict = row->verdict,
        .scope = row->scope,
        .wait_ms = row->wait_ms,
        .code = result->status,
        .remedy = row->remedy,
    };
    if (result->retry_after_ms >= 0 && out->verdict != VERDICT_DELIVERED) {
        out->wait_ms = result->retry_after_ms > 0 ? result->retry_after_ms : 1;
        if (result->status == 503) {
            out->verdict = VERDICT_THROTTLED;
            out->scope = kind == KIND_GRAPH        ? SCOPE_ACCOUNT
                         : kind == KIND_ACS_STATUS ? SCOPE_NONE
                                                   : SCOPE_BACKEND;
        }
    }
    bool words = code.len > 0 || error.message[0] != '\0';
    snprintf(out->text, sizeof(out->text), "%" PRIu32 "%s%.*s%s%s", result->status,
             code.len > 0 ? " " : "", SPAN_FMT(code), words ? " " : "", error.message);
    if (result->request_id[0] != '\0') {
        size_t len = strlen(out->text);
        snprintf(out->text + len, sizeof(out->text) - len, " (request-id %s)", result->request_id);
    }
}

/* ---- The backend ---- */

#define CONFIG_WAIT_MS 60000

void rest_backend_init(struct rest_backend *backend, const struct backend_ops *ops,
                       const struct rest_ops *rest_ops, const struct backend_env *env,
                       const struct backend_conf *conf, uint32_t max_connections)
{
    backend->base = (struct backend){.ops = ops, .conf = conf};
    backend->ops = rest_ops;
    backend->env = *env;
    backend->client = http_client_new(env->loop, max_connections);
    backend->jobs.next = &backend->jobs;
    backend->jobs.prev = &backend->jobs;
}

bool rest_open(const struct rest_backend *backend)
{
    return !backend->closing && loop_now_ms(backend->env.loop) >= backend->closed_until_ms;
}

static void tell_health(struct rest_backend *backend, const char *account, const char *what,
                        const struct answer *answer)
{
    backend->unhealthy = strcmp(what, "ok") != 0;
    if (backend->env.on_health != NULL) {
        backend->env.on_health(backend->env.ctx, backend->base.conf->name, account, what,
                               answer->text, answer->remedy);
    }
}

void rest_note(struct rest_backend *backend, const struct answer *answer, const char *account)
{
    if (answer->verdict == VERDICT_DELIVERED && backend->unhealthy) {
        tell_health(backend, account, "ok", answer);
    }
    if (answer->scope != SCOPE_BACKEND && answer->scope != SCOPE_TENANT) {
        return;
    }
    int64_t wait_ms = answer->wait_ms;
    if (answer->verdict == VERDICT_CONFIG) {
        wait_ms = wait_ms > 0 ? wait_ms : CONFIG_WAIT_MS;
        tell_health(backend, account, "config", answer);
    }
    int64_t until_ms = loop_now_ms(backend->env.loop) + wait_ms;
    if (until_ms > backend->closed_until_ms) {
        backend->closed_until_ms = until_ms;
    }
}

static void on_client_closed(void *ctx)
{
    struct rest_backend *backend = ctx;
    void (*on_closed)(void *ctx) = backend->on_closed;
    void *closed_ctx = backend->closed_ctx;
    loop_timer_stop(&backend->grace);
    loop_task_cancel(&backend->close_task);
    backend->ops->backend_free(backend);
    if (on_closed != NULL) {
        on_closed(closed_ctx);
    }
}

static void close_when_idle(void *ctx)
{
    struct rest_backend *backend = ctx;
    if (backend->running == 0 && backend->client != NULL) {
        http_client_close(&backend->client, on_client_closed, backend);
    }
}

static void on_grace_over(void *ctx)
{
    struct rest_backend *backend = ctx;
    struct answer answer;
    verdict_own_answer(VERDICT_TRANSIENT, "The gateway is stopping.", &answer);
    backend->stopping = true;
    struct rest_job *job = backend->jobs.next;
    while (job != &backend->jobs) {
        struct rest_job *next = job->next;
        if (job->requesting) {
            http_client_cancel(backend->client, &job->request); /* on_done follows */
        } else if (backend->ops->stop_waiting(job)) {
            rest_answer_rest(job, &answer);
            rest_finish(job, "");
        }
        job = next;
    }
}

void rest_close(struct backend *base, int64_t grace_ms, void (*on_closed)(void *ctx), void *ctx)
{
    struct rest_backend *backend = (struct rest_backend *)base;
    backend->closing = true;
    backend->on_closed = on_closed;
    backend->closed_ctx = ctx;
    loop_timer_start(backend->env.loop, &backend->grace, grace_ms, on_grace_over, backend);
    loop_defer(backend->env.loop, &backend->close_task, LOOP_TASK_WRITE, close_when_idle, backend);
}

/* ---- A delivery ---- */

static void on_begin(void *ctx)
{
    struct rest_job *job = ctx;
    job->backend->ops->start(job);
}

void rest_begin(struct rest_backend *backend, struct rest_job *job, struct delivery *delivery)
{
    ASSERT(delivery->recipient_count <= BATCH_RECIPIENTS_MAX);
    job->backend = backend;
    job->delivery = delivery;
    job->next = &backend->jobs;
    job->prev = backend->jobs.prev;
    job->prev->next = job;
    job->next->prev = job;
    backend->running++;
    delivery->backend_private = job;
    loop_defer(backend->env.loop, &job->task, LOOP_TASK_WRITE, on_begin, job);
}

void rest_push(struct rest_job *job, size_t from, size_t count)
{
    ASSERT(job->range_count < sizeof(job->ranges) / sizeof(job->ranges[0]) && count > 0);
    job->ranges[job->range_count++] = (struct rest_range){.from = from, .count = count};
}

void rest_split(struct rest_job *job)
{
    struct rest_range range = job->range;
    size_t half = range.count / 2;
    ASSERT(half > 0);
    rest_push(job, range.from + half, range.count - half);
    rest_push(job, range.from, half);
}

bool rest_next(struct rest_job *job)
{
    if (job->range_count == 0 || job->backend->stopping) {
        return false;
    }
    job->range = job->ranges[--job->range_count];
    return true;
}

static int on_request_start(struct http_request *request)
{
    struct rest_job *job = request->ctx;
    if (job->started) {
        return 0; /* a further range or try of the same delivery */
    }
    int status = job->delivery->on_start != NULL ? job->delivery->on_start(job->delivery) : 0;
    job->started = status == 0;
    return status;
}

void rest_request(struct rest_job *job, bool sends,
                  void (*on_done)(struct http_request *request, const struct http_result *result))
{
    const struct backend_conf *conf = job->backend->base.conf;
    job->request.ca_file = conf->ca_file;
    job->request.connect_timeout_ms = conf->connect_timeout_ms;
    job->request.reply_timeout_ms = conf->reply_timeout_ms;
    job->request.on_start = sends ? on_request_start : NULL;
    job->request.on_done = on_done;
    job->request.ctx = job;
    job->requesting = true;
    http_client_send(job->backend->client, &job->request);
}

void rest_answer_range(struct rest_job *job, const struct answer *answer)
{
    for (size_t i = job->range.from; i < job->range.from + job->range.count; i++) {
        job->answers[i] = *answer;
        job->answered[i] = true;
    }
}

void rest_answer_rest(struct rest_job *job, const struct answer *answer)
{
    for (size_t i = 0; i < job->delivery->recipient_count; i++) {
        if (!job->answered[i]) {
            job->answers[i] = *answer;
            job->answered[i] = true;
        }
    }
}

void rest_finish(struct rest_job *job, const char *account)
{
    struct rest_backend *backend = job->backend;
    struct delivery *delivery = job->delivery;
    for (size_t i = 0; i < delivery->recipient_count; i++) {
        ASSERT(job->answered[i]);
    }
    loop_task_cancel(&job->task);
    job->prev->next = job->next;
    job->next->prev = job->prev;
    backend->running--; /* before the callback: it may bring the next delivery */
    delivery->backend_private = NULL;
    delivery->on_done(delivery, job->answers, account);
    backend->ops->job_free(job);
    if (backend->closing) {
        loop_defer(backend->env.loop, &backend->close_task, LOOP_TASK_WRITE, close_when_idle,
                   backend);
    }
}
