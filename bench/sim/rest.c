#include "bench/sim/rest.h"

#include "gateway/base/codec.h"
#include "gateway/listener.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct rest {
    struct sim *sim;
    const struct rest_ops *ops;
    void *ctx;
    struct listener *listener;
    struct http_server *server;
};

static struct ledger_counts *counts_of(const struct rest_call *call)
{
    return ledger_counts(call->sim->ledger, call->rest->ops->service);
}

void rest_uuid(char out[REST_UUID_LEN + 1])
{
    uint8_t bytes[16];
    char hex[33];
    codec_random(bytes, sizeof(bytes));
    bytes[6] = (uint8_t)((bytes[6] & 0x0f) | 0x40); /* RFC 9562: version 4, variant 10 */
    bytes[8] = (uint8_t)((bytes[8] & 0x3f) | 0x80);
    codec_hex(bytes, sizeof(bytes), hex);
    (void)snprintf(out, REST_UUID_LEN + 1, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12,
                   hex + 16, hex + 20);
}

struct span rest_bearer(const struct rest_call *call)
{
    struct span value = http_request_header(call->request, "authorization");
    if (value.data == NULL || !span_istarts(value, SPAN_LIT("Bearer "))) {
        return (struct span){0};
    }
    return span_trim(span_make(value.data + 7, value.len - 7));
}

void rest_header(struct rest_call *call, const char *name, struct span value)
{
    struct span copy = arena_dup(&call->request->arena, value);
    if (call->header_count < REST_HEADERS_MAX && copy.data != NULL) {
        call->headers[call->header_count++] = (struct http_header){.name = span_of(name),
                                                                   .value = copy};
    }
}

void rest_json(struct rest_call *call, int status, json_t *take)
{
    char *text = json_dumps(take, JSON_COMPACT);
    json_decref(take);
    ASSERT(text != NULL);
    call->status = status;
    call->body = arena_dup(&call->request->arena, span_of(text));
    free(text);
    rest_header(call, "content-type", SPAN_LIT("application/json; charset=utf-8"));
}

/* The call is over: nothing may count it as running any more. */
static void call_end(struct rest_call *call)
{
    loop_timer_stop(&call->timer);
    if (call->gauge != NULL) {
        ASSERT(*call->gauge > 0);
        (*call->gauge)--;
        call->gauge = NULL;
    }
    call->request->user = NULL;
}

static void call_send(void *ctx)
{
    struct rest_call *call = ctx;
    call_end(call);
    http_reply(call->request, call->status, call->headers, call->header_count, call->body);
}

void rest_reply(struct rest_call *call)
{
    int64_t delay_ms = call->delay_ms +
                       (int64_t)call->sim->conf->latency_ms[call->rest->ops->service];
    if (delay_ms > 0) {
        loop_timer_start(call->sim->loop, &call->timer, delay_ms, call_send, call);
    } else {
        call_send(call);
    }
}

void rest_drop(struct rest_call *call)
{
    struct http_request *request = call->request;
    call_end(call);
    http_abort(request);
}

static void count_error(struct rest_call *call, int status)
{
    struct ledger_counts *counts = counts_of(call);
    if (status == 429) {
        counts->throttled++;
    } else if (status == 401) {
        counts->auth_failures++;
    } else if (status < 500) {
        counts->rejected++;
    }
}

/* What a Retry-After does to the call's scope. A refusal inside a closed period leaves its end as
 * it is: the seconds are rounded up, and whoever was told the end first may come then. */
enum closing {
    CLOSING_KEPT,
    CLOSING_ON_HONOUR,
    CLOSING_ENFORCED,
};

static void announce(struct rest_call *call, int64_t wait_ms, bool enforced)
{
    char room[200];
    struct span scope = call->rest->ops->scope(call->rest->ctx, call, room, sizeof(room));
    closures_announce(call->sim->closures, scope, loop_now_ms(call->sim->loop), wait_ms, enforced);
}

static void refuse(struct rest_call *call, const struct rest_error *error, enum closing closing)
{
    char seconds[24];
    count_error(call, error->status);
    if (error->retry_after_s >= 0) {
        (void)snprintf(seconds, sizeof(seconds), "%" PRId64, error->retry_after_s);
        rest_header(call, "retry-after", span_of(seconds));
        if (closing != CLOSING_KEPT) {
            announce(call, error->retry_after_s * 1000, closing == CLOSING_ENFORCED);
        }
    }
    call->rest->ops->refuse(call->rest->ctx, call, error);
    rest_reply(call);
}

void rest_refuse(struct rest_call *call, const struct rest_error *error)
{
    refuse(call, error, CLOSING_ON_HONOUR);
}

static void answer_fault(struct rest_call *call, const struct fault *fault, bool throttle)
{
    const struct rest_error error = {
        .status = throttle             ? 429
                  : fault->status != 0 ? (int)fault->status
                                       : 500,
        .code = fault->code[0] != '\0' ? fault->code : NULL,
        .message = fault->text[0] != '\0' ? fault->text : NULL,
        .retry_after_s = throttle || fault->has_retry_after ? (int64_t)fault->retry_after_s : -1,
    };
    if (fault->kind == FAULT_REPLY && fault->text[0] != '\0') {
        /* The text is the whole body, as it is. */
        count_error(call, error.status);
        call->status = error.status;
        call->body = arena_dup(&call->request->arena, span_of(fault->text));
        rest_reply(call);
        return;
    }
    refuse(call, &error, CLOSING_ENFORCED);
}

/* Carries a fault out. True: the call is taken care of. */
static bool run_fault(struct rest_call *call, const struct fault *fault)
{
    switch (fault->kind) {
    case FAULT_THROTTLE:
        answer_fault(call, fault, true);
        return true;
    case FAULT_STATUS:
    case FAULT_REPLY:
        answer_fault(call, fault, false);
        return true;
    case FAULT_LOST_ANSWER:
        counts_of(call)->lost_answers++;
        rest_drop(call);
        return true;
    case FAULT_RESET:
        rest_drop(call);
        return true;
    case FAULT_HANG:
        return true; /* the client's patience ends it: on_gone */
    case FAULT_SLOW:
        call->delay_ms += fault->delay_ms;
        return false;
    case FAULT_TOKEN_EXPIRED:
        call->expired = true;
        return false;
    case FAULT_BAD_CERTIFICATE:
        return false; /* taken where connections are accepted */
    }
    UNREACHABLE();
}

bool rest_accepted(struct rest_call *call, struct span subject)
{
    const struct fault *fault = faults_take(call->sim->faults, call->rest->ops->service,
                                            PHASE_ACCEPTED, subject);
    return fault == NULL || !run_fault(call, fault);
}

/* Inside a closed period that the simulator enforces: the same refusal again, with the time that is
 * left. */
static bool still_closed(struct rest_call *call)
{
    char room[200];
    struct span scope = call->rest->ops->scope(call->rest->ctx, call, room, sizeof(room));
    int64_t left_ms = closures_check(call->sim->closures, scope, loop_now_ms(call->sim->loop),
                                     counts_of(call));
    if (left_ms <= 0) {
        return false;
    }
    const struct rest_error error = {.status = 429, .retry_after_s = (left_ms + 999) / 1000};
    refuse(call, &error, CLOSING_KEPT);
    return true;
}

static void run_call(struct rest_call *call)
{
    struct rest *rest = call->rest;
    if (still_closed(call)) {
        return;
    }
    if (faults_wait(rest->sim->faults, rest->ops->service, PHASE_REQUEST)) {
        struct buf subject; /* path and body: `match` may name a recipient */
        buf_init(&subject, call->request->target.len + buf_len(&call->request->body) + 2);
        const struct fault *fault = NULL;
        if (buf_append(&subject, call->request->target) == 0 &&
            buf_append_byte(&subject, ' ') == 0 &&
            buf_append(&subject, buf_span(&call->request->body)) == 0) {
            fault = faults_take(rest->sim->faults, rest->ops->service, PHASE_REQUEST,
                                buf_span(&subject));
        }
        buf_release(&subject);
        if (fault != NULL && run_fault(call, fault)) {
            return;
        }
    }
    rest->ops->handle(rest->ctx, call);
}

static size_t on_head(void *ctx, struct http_request *request)
{
    struct rest *rest = ctx;
    struct rest_call *call = arena_alloc(&request->arena, sizeof(*call));
    if (call == NULL) {
        http_reply(request, 503, NULL, 0, (struct span){0});
        return 0;
    }
    *call = (struct rest_call){.rest = rest, .sim = rest->sim, .request = request};
    request->user = call;
    counts_of(call)->requests++;
    return rest->ops->begin(rest->ctx, call);
}

static void on_request(void *ctx, struct http_request *request)
{
    (void)ctx;
    run_call(request->user);
}

static void on_too_large(void *ctx, struct http_request *request)
{
    (void)ctx;
    struct rest_call *call = request->user;
    call->too_large = true;
    run_call(call);
}

static void on_gone(void *ctx, struct http_request *request)
{
    (void)ctx;
    if (request->user != NULL) {
        call_end(request->user);
    }
}

static const struct http_handler REST_HANDLER = {
    .on_head = on_head,
    .on_request = on_request,
    .on_gone = on_gone,
    .on_too_large = on_too_large,
};

static int on_accept(void *ctx, uv_stream_t *socket)
{
    struct rest *rest = ctx;
    struct tls_context *tls = sim_tls_for(rest->sim, rest->ops->service, rest->sim->tls_http);
    return http_server_accept(rest->server, socket, tls);
}

int rest_open(struct sim *sim, const struct rest_ops *ops, void *ctx, struct rest **out,
              struct err *err)
{
    char bind_text[128];
    (void)snprintf(bind_text, sizeof(bind_text), "%s:%" PRIu64, sim->conf->bind,
                   sim->conf->ports[ops->service]);
    struct rest *rest = mem_zero(sizeof(*rest));
    *rest = (struct rest){.sim = sim, .ops = ops, .ctx = ctx};
    int result = listener_open(sim->loop, bind_text, on_accept, rest, &rest->listener, err);
    if (result != 0) {
        mem_free(rest);
        return result;
    }
    rest->server = http_server_new(sim->loop, &REST_HANDLER, rest, NULL);
    sim->ports[ops->service] = listener_port(rest->listener);
    *out = rest;
    return 0;
}

void rest_close(struct rest **rest)
{
    if (*rest == NULL) {
        return;
    }
    listener_close(&(*rest)->listener);
    http_server_free(&(*rest)->server);
    mem_free(*rest);
    *rest = NULL;
}
