#include "bench/sim/sim_acs.h"

#include "bench/sim/acs_auth.h"
#include "bench/sim/acs_message.h"
#include "bench/sim/operations.h"
#include "bench/sim/rest.h"
#include "gateway/base/codec.h"

#include <inttypes.h>
#include <stdio.h>

struct acs {
    struct rest *rest;
    struct sim *sim;
    struct buf key; /* decoded access key */
    struct quota send_quota;
    struct quota status_quota;
    struct operations *operations;
};

#define SEND_PATH SPAN_LIT("/emails:send")
#define STATUS_PATH SPAN_LIT("/emails/operations/")

static void acs_refuse(struct rest_call *call, int status, const char *code, const char *message)
{
    const struct rest_error error = {
        .status = status, .code = code, .message = message, .retry_after_s = -1};
    rest_refuse(call, &error);
}

/* "PerSubscriptionPerMinuteLimitExceeded - Please try again after 60 seconds." (services.md 2.3).
 */
static void throttle_text(const struct quota_window *window, int64_t wait_s, char *out, size_t room)
{
    const char *period = window != NULL && window->window_ms >= 3600000 ? "Hour" : "Minute";
    (void)snprintf(out, room,
                   "PerSubscriptionPer%sLimitExceeded - Please try again after %" PRId64
                   " seconds.",
                   period, wait_s);
}

/* Counts the request against its windows; answers 429 when one is full. */
static bool within_quota(struct acs *acs, struct rest_call *call, struct quota *quota)
{
    int64_t wait_ms = 0;
    char text[160];
    const struct quota_window *broken = quota_take(quota, loop_now_ms(acs->sim->loop), &wait_ms);
    if (broken == NULL) {
        return true;
    }
    int64_t wait_s = (wait_ms + 999) / 1000;
    throttle_text(broken, wait_s, text, sizeof(text));
    const struct rest_error error = {
        .status = 429, .code = "TooManyRequests", .message = text, .retry_after_s = wait_s};
    rest_refuse(call, &error);
    return false;
}

static bool api_version_good(struct rest_call *call)
{
    static const char *const VERSIONS[] = {
        "2023-03-31",         "2025-09-01",         "2021-10-01-preview", "2023-01-15-preview",
        "2024-07-01-preview", "2025-01-01-preview", "2025-01-15-preview",
    };
    struct span version = {0};
    if (!http_request_query(call->request, "api-version", &version)) {
        acs_refuse(call, 400, "MissingApiVersionParameter",
                   "The api-version query parameter (?api-version=) is required for all requests.");
        return false;
    }
    for (size_t i = 0; i < sizeof(VERSIONS) / sizeof(VERSIONS[0]); i++) {
        if (span_eq(version, span_of(VERSIONS[i]))) {
            return true;
        }
    }
    acs_refuse(call, 400, "UnsupportedApiVersionValue", "The api-version is not supported.");
    return false;
}

/* The authority for links. SDKs up to communication-common 2.2 send "host:port:port" as Host where
 * the port is not 443; they sign it like that, but cannot follow a link made of it. */
static void link_authority(const struct rest_call *call, char *out, size_t room)
{
    struct span authority = call->request->authority;
    struct span rest = authority;
    struct span host = span_cut(&rest, ':');
    struct span port = span_cut(&rest, ':');
    if (!span_starts(authority, SPAN_LIT("[")) && rest.len > 0) {
        (void)snprintf(out, room, "%.*s:%.*s", SPAN_FMT(host), SPAN_FMT(port));
    } else {
        (void)snprintf(out, room, "%.*s", SPAN_FMT(authority));
    }
}

static void put_accepted(struct acs *acs, struct rest_call *call, struct span id)
{
    char text[1000];
    char authority[400];
    struct span version = {0};
    link_authority(call, authority, sizeof(authority));
    (void)http_request_query(call->request, "api-version", &version); /* checked before */
    (void)snprintf(text, sizeof(text), "https://%s/emails/operations/%.*s?api-version=%.*s",
                   authority, SPAN_FMT(id), SPAN_FMT(version));
    rest_header(call, "operation-location", span_of(text));
    (void)snprintf(text, sizeof(text), "%" PRIu64, acs->sim->conf->acs_poll_s);
    rest_header(call, "retry-after", span_of(text));
    rest_json(call, 202, json_pack("{s:s%, s:s}", "id", id.data, id.len, "status", "Running"));
}

/* What becomes of the operation, by address: dropped...@ and suppressed...@ fail
 * (services.md 2.3, 2.10). */
static enum operation_fate fate_of(const struct acs_message *message)
{
    size_t suppressed = 0;
    for (size_t i = 0; i < message->recipient_count; i++) {
        if (span_istarts(message->recipients[i], SPAN_LIT("dropped"))) {
            return FATE_DROPPED;
        }
        suppressed += span_istarts(message->recipients[i], SPAN_LIT("suppressed")) ? 1 : 0;
    }
    return suppressed == message->recipient_count ? FATE_SUPPRESSED : FATE_SUCCEEDED;
}

static void record(struct acs *acs, struct rest_call *call, const struct acs_message *message,
                   struct span id)
{
    char made[80];
    struct span message_id = message->message_id;
    if (message_id.len == 0) {
        int len = snprintf(made, sizeof(made), "<%.*s@acs.sim>", SPAN_FMT(id));
        message_id = span_make(made, (size_t)len);
    }
    const struct ledger_message entry = {
        .service = SIM_ACS,
        .account = message->sender,
        .message_id = message_id,
        .recipients = message->recipients,
        .recipient_count = message->recipient_count,
        .bytes = buf_len(&call->request->body),
    };
    uint64_t number = ledger_accept(acs->sim->ledger, &entry);
    sim_keep_body(acs->sim, SIM_ACS, number, buf_span(&call->request->body));
}

static void accept_message(struct acs *acs, struct rest_call *call,
                           const struct acs_message *message, struct span id,
                           const uint8_t raw_id[16])
{
    record(acs, call, message, id);
    operations_add(acs->operations, raw_id, loop_now_ms(acs->sim->loop), fate_of(message));
    if (rest_accepted(call, buf_span(&call->request->body))) {
        put_accepted(acs, call, id);
        rest_reply(call);
    }
}

/* A known Operation-Id: nothing is sent again; the answer is a switch, because the real one is
 * UNCONFIRMED. */
static void repeat_operation(struct acs *acs, struct rest_call *call, struct span id)
{
    ledger_counts(acs->sim->ledger, SIM_ACS)->repeated_operations++;
    switch (acs->sim->conf->acs_repeat) {
    case SIM_REPEAT_SAME:
        put_accepted(acs, call, id);
        rest_reply(call);
        return;
    case SIM_REPEAT_CONFLICT:
        acs_refuse(call, 409, "Conflict", "An operation with this id exists already.");
        return;
    case SIM_REPEAT_BAD_REQUEST:
        acs_refuse(call, 400, "BadRequest", "An operation with this id exists already.");
        return;
    }
    UNREACHABLE();
}

static void send_email(struct acs *acs, struct rest_call *call)
{
    char made[REST_UUID_LEN + 1];
    uint8_t raw_id[16];
    struct acs_message message;
    struct span body = buf_span(&call->request->body);
    struct span id = http_request_header(call->request, "operation-id");
    if (id.data == NULL) {
        rest_uuid(made);
        id = span_of(made);
    }
    if (!operation_id_read(id, raw_id)) {
        acs_refuse(call, 400, "BadRequest", "Operation-Id must be a UUID.");
        return;
    }
    json_t *json = json_loadb(body.data != NULL ? body.data : "", body.len, JSON_REJECT_DUPLICATES,
                              NULL);
    const struct acs_problem *problem = acs_message_read(acs->sim->conf, json, &message);
    if (problem != NULL) {
        acs_refuse(call, problem->status, problem->code, problem->message);
    } else {
        if (operations_find(acs->operations, raw_id) != NULL) {
            repeat_operation(acs, call, id);
        } else {
            accept_message(acs, call, &message, id, raw_id);
        }
        acs_message_release(&message);
    }
    json_decref(json);
}

static void put_status(struct acs *acs, struct rest_call *call, const struct operation *operation,
                       struct span id)
{
    char text[32];
    int64_t age_ms = loop_now_ms(acs->sim->loop) - operation->created_ms;
    if (age_ms < (int64_t)acs->sim->conf->acs_running_ms) {
        (void)snprintf(text, sizeof(text), "%" PRIu64, acs->sim->conf->acs_poll_s);
        rest_header(call, "retry-after", span_of(text));
        rest_json(call, 200, json_pack("{s:s%, s:s}", "id", id.data, id.len, "status", "Running"));
        return;
    }
    switch (operation->fate) {
    case FATE_SUCCEEDED:
        rest_json(call, 200,
                  json_pack("{s:s%, s:s}", "id", id.data, id.len, "status", "Succeeded"));
        return;
    case FATE_DROPPED:
        rest_json(call, 200,
                  json_pack("{s:s%, s:s, s:{s:s, s:s}}", "id", id.data, id.len, "status", "Failed",
                            "error", "code", "EmailDropped", "message",
                            "Email was dropped after several attempts to deliver."));
        return;
    case FATE_SUPPRESSED:
        rest_json(call, 200,
                  json_pack("{s:s%, s:s, s:{s:s, s:s}}", "id", id.data, id.len, "status", "Failed",
                            "error", "code", "EmailDroppedAllRecipientsSuppressed", "message",
                            "Message dropped because all recipients were suppressed"));
        return;
    }
    UNREACHABLE();
}

static void get_status(struct acs *acs, struct rest_call *call)
{
    uint8_t raw_id[16];
    struct span path = call->request->path;
    struct span id = span_make(path.data + STATUS_PATH.len, path.len - STATUS_PATH.len);
    const struct operation *operation = operation_id_read(id, raw_id)
                                            ? operations_find(acs->operations, raw_id)
                                            : NULL;
    if (operation == NULL) {
        acs_refuse(call, 404, "NotFound", "There is no such operation.");
        return;
    }
    put_status(acs, call, operation, id);
    rest_reply(call);
}

static bool is_status(const struct rest_call *call)
{
    return span_starts(call->request->path, STATUS_PATH);
}

static void handle(void *ctx, struct rest_call *call)
{
    struct acs *acs = ctx;
    bool status = is_status(call);
    struct span trace = http_request_header(call->request, "x-ms-client-request-id");
    if (trace.data != NULL) {
        rest_header(call, "x-ms-client-request-id", trace);
    }
    if (!acs_auth_good(call, buf_span(&acs->key))) {
        acs_refuse(call, 401, "Denied", "Denied by the resource provider.");
        return;
    }
    if (!within_quota(acs, call, status ? &acs->status_quota : &acs->send_quota)) {
        return;
    }
    if (call->too_large) {
        acs_refuse(call, 400, "BadRequest",
                   "The total size of the email exceeds the maximum of 10 MB.");
    } else if (!api_version_good(call)) {
        return;
    } else if (status && span_eq(call->request->method, SPAN_LIT("GET"))) {
        get_status(acs, call);
    } else if (span_eq(call->request->path, SEND_PATH) &&
               span_eq(call->request->method, SPAN_LIT("POST"))) {
        send_email(acs, call);
    } else {
        acs_refuse(call, 404, "NotFound", "The requested resource does not exist.");
    }
}

static size_t begin(void *ctx, struct rest_call *call)
{
    (void)ctx;
    return (size_t)call->sim->conf->acs_max_bytes;
}

static void refuse(void *ctx, struct rest_call *call, const struct rest_error *error)
{
    (void)ctx;
    char text[160];
    const char *code = error->code;
    const char *message = error->message;
    if (code == NULL) {
        code = error->status == 429   ? "TooManyRequests"
               : error->status == 401 ? "Denied"
                                      : "InternalServerError";
    }
    if (message == NULL && error->status == 429) {
        throttle_text(NULL, error->retry_after_s, text, sizeof(text));
        message = text;
    }
    if (message == NULL) {
        message = "The service could not handle the request.";
    }
    rest_header(call, "x-ms-error-code", span_of(code));
    rest_json(call, error->status,
              json_pack("{s:{s:s, s:s}}", "error", "code", code, "message", message));
}

/* Sending and asking have quotas, and so periods, of their own. */
static struct span scope(void *ctx, struct rest_call *call, char *room, size_t room_bytes)
{
    (void)ctx;
    (void)room;
    (void)room_bytes;
    return is_status(call) ? SPAN_LIT("acs status") : SPAN_LIT("acs send");
}

static const struct rest_ops ACS_OPS = {
    .service = SIM_ACS,
    .begin = begin,
    .handle = handle,
    .refuse = refuse,
    .scope = scope,
};

static int read_settings(struct acs *acs, struct err *err)
{
    const struct sim_conf *conf = acs->sim->conf;
    if (codec_base64_decode(span_of(conf->acs_key), false, &acs->key) != 0 ||
        buf_len(&acs->key) == 0) {
        return err_set(err, ERR_INVAL, "--acs-key is not base64.");
    }
    int result = quota_read(span_of(conf->acs_quota), &acs->send_quota, err);
    if (result == 0) {
        result = quota_read(span_of(conf->acs_status_quota), &acs->status_quota, err);
    }
    return result;
}

int acs_open(struct sim *sim, struct acs **out, struct err *err)
{
    struct acs *acs = mem_zero(sizeof(*acs));
    acs->sim = sim;
    acs->operations = operations_new();
    buf_init_secret(&acs->key, 4096);
    int result = read_settings(acs, err);
    if (result == 0) {
        result = rest_open(sim, &ACS_OPS, acs, &acs->rest, err);
    }
    if (result != 0) {
        acs_close(&acs);
        return result;
    }
    *out = acs;
    return 0;
}

void acs_close(struct acs **acs)
{
    if (*acs == NULL) {
        return;
    }
    rest_close(&(*acs)->rest);
    operations_free(&(*acs)->operations);
    quota_release(&(*acs)->send_quota);
    quota_release(&(*acs)->status_quota);
    buf_release(&(*acs)->key);
    mem_free(*acs);
    *acs = NULL;
}

void acs_reset(struct acs *acs)
{
    operations_reset(acs->operations);
    quota_reset(&acs->send_quota);
    quota_reset(&acs->status_quota);
}
