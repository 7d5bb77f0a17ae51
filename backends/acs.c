#include "backends/acs.h"

#include "backends/rest.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <inttypes.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>

/* One delivery:
 *
 *   start ─► [ask, when the batch may have been sent] ─► send ─► answer ─► next range or finish
 *                 └ known: delivered                        ├ 401: sign again, once
 *                                                           └ 400 to a name that may be known: ask,
 * once
 */

/* services.md 2.6: 10 MB for the whole request unless support has raised it. */
#define REQUEST_MAX_BYTES ((uint64_t)10000000)
#define API_VERSION "2025-09-01"

struct acs {
    struct rest_backend rest;
    struct buf key; /* decoded */
    struct span host;
    const char *api_version;
    const char *neutral_to;
    size_t request_max_bytes;
};

struct acs_job {
    struct rest_job rest;
    struct arena arena;
    struct mail_view view;
    struct buf body;
    struct buf url;
    struct buf authorization;
    char operation_id[ACS_UUID_MAX];
    char date[CLOCK_TEXT_MAX];
    char content_hash[ACS_SIGNATURE_MAX];
    bool signed_again;
    bool asked_after;      /* asked because of a 400 */
    struct answer refusal; /* that 400 */
};

/* ---- Signing (services.md 2.4) ---- */

static void base64_text(const unsigned char *bytes, size_t len, char out[ACS_SIGNATURE_MAX])
{
    ASSERT(EVP_EncodeBlock((unsigned char *)out, bytes, (int)len) < ACS_SIGNATURE_MAX);
}

void acs_content_hash(struct span bytes, char out[ACS_SIGNATURE_MAX])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    ASSERT(EVP_Digest(bytes.len > 0 ? bytes.data : "", bytes.len, digest, &len, EVP_sha256(),
                      NULL) == 1);
    base64_text(digest, len, out);
}

void acs_hmac(struct span key, struct span text, char out[ACS_SIGNATURE_MAX])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    ASSERT(HMAC(EVP_sha256(), key.data, (int)key.len, (const unsigned char *)text.data, text.len,
                digest, &len) != NULL);
    base64_text(digest, len, out);
}

int acs_sign(struct span key, const char *method, struct span path, const char *date,
             struct span host, const char *content_hash, char out[ACS_SIGNATURE_MAX])
{
    struct buf text;
    buf_init(&text, 8192);
    int status = buf_printf(&text, "%s\n%.*s\n%s;%.*s;%s", method, SPAN_FMT(path), date,
                            SPAN_FMT(host), content_hash);
    if (status == 0) {
        acs_hmac(key, buf_span(&text), out);
    }
    buf_release(&text);
    return status;
}

/* RFC 4122 4.3, version 5, in a name space of our own. */
void acs_operation_id(const struct delivery *delivery, size_t from, size_t count,
                      char out[ACS_UUID_MAX])
{
    static const unsigned char name_space[16] = {0x6b, 0x1f, 0x0e, 0x52, 0x88, 0x3d, 0x4c, 0x0a,
                                                 0x9d, 0x5e, 0x2f, 0x41, 0xc7, 0x3b, 0x90, 0xe8};
    char numbers[64];
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    ASSERT(context != NULL && EVP_DigestInit_ex(context, EVP_sha1(), NULL) == 1);
    int numbers_len = snprintf(numbers, sizeof(numbers), "\n%" PRIu32 "\n%" PRIu32,
                               delivery->batch_number, delivery->epoch);
    EVP_DigestUpdate(context, name_space, sizeof(name_space));
    EVP_DigestUpdate(context, delivery->message_id.data, delivery->message_id.len);
    EVP_DigestUpdate(context, numbers, (size_t)numbers_len);
    for (size_t i = from; i < from + count; i++) {
        EVP_DigestUpdate(context, "\n", 1);
        EVP_DigestUpdate(context, delivery->recipients[i].data, delivery->recipients[i].len);
    }
    ASSERT(EVP_DigestFinal_ex(context, digest, &len) == 1 && len >= 16);
    EVP_MD_CTX_free(context);
    digest[6] = (unsigned char)((digest[6] & 0x0f) | 0x50);
    digest[8] = (unsigned char)((digest[8] & 0x3f) | 0x80);
    char hex[33];
    codec_hex(digest, 16, hex);
    snprintf(out, ACS_UUID_MAX, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16,
             hex + 20);
}

/* ---- Requests ---- */

static struct acs *job_acs(const struct acs_job *job)
{
    return (struct acs *)job->rest.backend;
}

static void job_send(struct acs_job *job);
static void job_ask(struct acs_job *job);
static void job_next(struct acs_job *job);

static void finish_all(struct acs_job *job, const struct answer *answer)
{
    rest_note(job->rest.backend, answer, "");
    rest_answer_rest(&job->rest, answer);
    rest_finish(&job->rest, job->rest.backend->base.conf->sender);
}

static void finish_own(struct acs_job *job, enum verdict verdict, const char *text)
{
    struct answer answer;
    verdict_own_answer(verdict, text, &answer);
    finish_all(job, &answer);
}

/* Sets url, signature and headers of job->rest.request; the body stays what the caller set. */
static int request_sign(struct acs_job *job, const char *method, const char *path)
{
    const struct acs *acs = job_acs(job);
    struct http_request *request = &job->rest.request;
    char signature[ACS_SIGNATURE_MAX];
    struct span target = SPAN_LIT("");
    buf_reset(&job->url);
    int status = buf_printf(&job->url, "%s%s?api-version=%s", acs->rest.base.conf->endpoint, path,
                            acs->api_version);
    const char *url = status == 0 ? buf_text(&job->url) : NULL;
    if (url == NULL) {
        return ERR_NOMEM;
    }
    size_t prefix = strlen(acs->rest.base.conf->endpoint);
    target = span_make(url + prefix, buf_len(&job->url) - prefix);
    clock_http(clock_wall_ms(), job->date);
    acs_content_hash(request->body, job->content_hash);
    status = acs_sign(buf_span(&acs->key), method, target, job->date, acs->host, job->content_hash,
                      signature);
    buf_reset(&job->authorization);
    if (status == 0) {
        status = buf_printf(
            &job->authorization,
            "HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature=%s", signature);
    }
    request->method = method;
    request->url = url;
    request->header_count = 0;
    http_client_request_header(request, SPAN_LIT("x-ms-date"), span_of(job->date));
    http_client_request_header(request, SPAN_LIT("x-ms-content-sha256"),
                               span_of(job->content_hash));
    http_client_request_header(request, SPAN_LIT("Authorization"), buf_span(&job->authorization));
    http_client_request_header(request, SPAN_LIT("Accept"), SPAN_LIT("application/json"));
    return status;
}

/* ---- Sending ---- */

/* 401: once more with a fresh date, because clocks drift (services.md 2.3), then it is the key. */
static bool sign_again(struct acs_job *job, struct answer *answer)
{
    if (answer->verdict != VERDICT_REFRESH) {
        return false;
    }
    if (!job->signed_again && !job->rest.backend->stopping) {
        job->signed_again = true;
        return true;
    }
    answer->verdict = VERDICT_CONFIG;
    return false;
}

static void judge(struct acs_job *job, struct answer *answer)
{
    struct rest_job *rest = &job->rest;
    switch (answer->verdict) {
    case VERDICT_DELIVERED:
    case VERDICT_UNKNOWN: /* the other ranges are other requests */
        rest_note(rest->backend, answer, "");
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
    struct acs_job *job = request->ctx;
    struct answer answer;
    job->rest.requesting = false;
    rest_answer(KIND_ACS_SEND, result, &answer);
    if (sign_again(job, &answer)) {
        job_send(job);
        return;
    }
    bool maybe_known = result->status == 400 && job->rest.delivery->maybe_sent;
    if (maybe_known && !job->asked_after && !job->rest.backend->stopping) {
        job->asked_after = true;
        job->refusal = answer;
        job_ask(job);
        return;
    }
    judge(job, &answer);
}

static void job_send(struct acs_job *job)
{
    struct acs *acs = job_acs(job);
    struct rest_job *rest = &job->rest;
    buf_reset(&job->body);
    int status = acs_message_write(&job->view, rest->delivery, rest->range.from, rest->range.count,
                                   acs->rest.base.conf->sender, acs->neutral_to, &job->body);
    if (status == ERR_LIMIT) {
        char text[160];
        snprintf(text, sizeof(text),
                 "The message makes an ACS request of more than %zu bytes, which is the limit.",
                 acs->request_max_bytes);
        finish_own(job, VERDICT_MESSAGE_PERMANENT, text);
        return;
    }
    rest->request = (struct http_request){.body = buf_span(&job->body)};
    if (status != 0 || request_sign(job, "POST", "/emails:send") != 0) {
        finish_own(job, VERDICT_TRANSIENT, "There is no memory for the request.");
        return;
    }
    acs_operation_id(rest->delivery, rest->range.from, rest->range.count, job->operation_id);
    http_client_request_header(&rest->request, SPAN_LIT("Content-Type"),
                               SPAN_LIT("application/json"));
    http_client_request_header(&rest->request, SPAN_LIT("Operation-Id"),
                               span_of(job->operation_id));
    http_client_request_header(&rest->request, SPAN_LIT("x-ms-client-request-id"),
                               span_of(job->operation_id));
    rest_request(rest, true, on_sent);
}

/* ---- Asking (services.md 2.2) ---- */

/* What an operation that is known has come to. */
static void answer_of_operation(struct span body, struct answer *out)
{
    json_t *json = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    const char *state = json_string_value(json_object_get(json, "status"));
    struct rest_error error;
    rest_error_read(body, &error);
    bool failed = state != NULL && (strcmp(state, "Failed") == 0 || strcmp(state, "Canceled") == 0);
    *out = (struct answer){
        .verdict = state == NULL ? VERDICT_TRANSIENT
                   : failed      ? VERDICT_MESSAGE_PERMANENT
                                 : VERDICT_DELIVERED,
        .code = 200,
    };
    snprintf(out->text, sizeof(out->text), "200 operation %s%s%s",
             state != NULL ? state : "unreadable", error.code[0] != '\0' ? " " : "", error.code);
    json_decref(json);
}

static void on_asked(struct http_request *request, const struct http_result *result)
{
    struct acs_job *job = request->ctx;
    struct answer answer;
    job->rest.requesting = false;
    if (result->outcome == HTTP_ANSWERED && result->status == 200) {
        answer_of_operation(result->body, &answer);
        if (answer.verdict == VERDICT_MESSAGE_PERMANENT) {
            /* It may have failed for its recipients; the other ranges are other operations. */
            rest_answer_range(&job->rest, &answer);
            job_next(job);
        } else {
            judge(job, &answer);
        }
        return;
    }
    if (result->outcome == HTTP_ANSWERED && result->status == 404 && !job->rest.backend->stopping) {
        if (job->asked_after) {
            judge(job, &job->refusal);
        } else {
            job_send(job);
        }
        return;
    }
    rest_answer(KIND_ACS_STATUS, result, &answer);
    if (sign_again(job, &answer)) {
        job_ask(job);
        return;
    }
    finish_all(job, &answer);
}

static void job_ask(struct acs_job *job)
{
    char path[80];
    struct rest_job *rest = &job->rest;
    acs_operation_id(rest->delivery, rest->range.from, rest->range.count, job->operation_id);
    snprintf(path, sizeof(path), "/emails/operations/%s", job->operation_id);
    rest->request = (struct http_request){.repeatable = true};
    if (request_sign(job, "GET", path) != 0) {
        finish_own(job, VERDICT_TRANSIENT, "There is no memory for the request.");
        return;
    }
    rest_request(rest, false, on_asked);
}

/* ---- The course of a delivery ---- */

static void job_next(struct acs_job *job)
{
    struct rest_job *rest = &job->rest;
    if (!rest_next(rest)) {
        /* Everybody has an answer, unless the backend is being stopped. */
        finish_own(job, VERDICT_TRANSIENT, "The gateway is stopping.");
        return;
    }
    job->signed_again = false;
    job->asked_after = false;
    if (rest->delivery->maybe_sent) {
        job_ask(job);
    } else {
        job_send(job);
    }
}

static void job_start(struct rest_job *rest)
{
    struct acs_job *job = (struct acs_job *)rest;
    struct delivery *delivery = rest->delivery;
    const struct backend_conf *conf = rest->backend->base.conf;
    struct err err = {.code = 0};
    if (conf->message_bytes > 0 && delivery->body.len > conf->message_bytes) {
        char text[120];
        snprintf(text, sizeof(text), "The message is larger than %" PRIu64 " bytes.",
                 conf->message_bytes);
        finish_own(job, VERDICT_MESSAGE_PERMANENT, text);
        return;
    }
    int status = rest->backend->env.read_mail(delivery->body, &job->arena, &job->view, &err);
    if (status != 0) {
        finish_own(job, status == ERR_NOMEM ? VERDICT_TRANSIENT : VERDICT_MESSAGE_PERMANENT,
                   err.text);
        return;
    }
    size_t count = delivery->recipient_count;
    bool hidden = count > 1 && acs_visible_count(&job->view, delivery, 0, count) == 0;
    if (hidden && count + 1 > conf->recipients_per_message) {
        /* The neutral To would be one too many. */
        rest_push(rest, count / 2, count - count / 2);
        rest_push(rest, 0, count / 2);
    } else {
        rest_push(rest, 0, count);
    }
    job_next(job);
}

static bool job_stop_waiting(struct rest_job *rest)
{
    (void)rest;
    return true; /* it has not begun: nothing else is waited for */
}

static void job_free(struct rest_job *rest)
{
    struct acs_job *job = (struct acs_job *)rest;
    arena_release(&job->arena);
    buf_release(&job->body);
    buf_release(&job->url);
    buf_release(&job->authorization);
    mem_free(job);
}

/* ---- The backend ---- */

static size_t acs_room(const struct backend *base)
{
    const struct acs *acs = (const struct acs *)base;
    size_t slots = base->conf->concurrency;
    if (!rest_open(&acs->rest) || acs->rest.running >= slots) {
        return 0;
    }
    return slots - acs->rest.running;
}

static int acs_deliver(struct backend *base, struct delivery *delivery)
{
    struct acs *acs = (struct acs *)base;
    struct acs_job *job = mem_zero(sizeof(*job));
    arena_init(&job->arena, delivery->body.len * 4 + ((size_t)1 << 20));
    buf_init(&job->body, acs->request_max_bytes);
    buf_init(&job->url, 4096);
    buf_init_secret(&job->authorization, 512);
    rest_begin(&acs->rest, &job->rest, delivery);
    return 0;
}

static void acs_free(struct rest_backend *rest)
{
    struct acs *acs = (struct acs *)rest;
    buf_release(&acs->key);
    mem_free(acs);
}

static const struct rest_ops acs_rest_ops = {
    .start = job_start,
    .stop_waiting = job_stop_waiting,
    .job_free = job_free,
    .backend_free = acs_free,
};

/* "https://host[:port]", nothing after it: a path or slash would be signed wrong (services.md 2.3).
 */
static int endpoint_host(const struct backend_conf *conf, struct span *out, struct err *err)
{
    struct span endpoint = span_of(conf->endpoint != NULL ? conf->endpoint : "");
    struct span scheme = SPAN_LIT("https://");
    struct span host = span_starts(endpoint, scheme)
                           ? span_make(endpoint.data + scheme.len, endpoint.len - scheme.len)
                           : span_make(NULL, 0);
    if (host.len == 0 || span_find(host, '/') < host.len) {
        return err_set(
            err, ERR_INVAL,
            "Backend \"%s\": endpoint must be https://, a host name and nothing after it.",
            conf->name);
    }
    if (span_ends(host, SPAN_LIT(":443"))) {
        host.len -= 4; /* is not sent in the Host field */
    }
    *out = host;
    return 0;
}

static int acs_open(const struct backend_env *env, const struct backend_conf *conf,
                    struct backend **out, struct err *err)
{
    struct span host;
    struct buf key;
    int status = endpoint_host(conf, &host, err);
    if (status != 0) {
        return status;
    }
    if (conf->sender == NULL || conf->sender[0] == '\0') {
        return err_set(err, ERR_INVAL, "Backend \"%s\" needs `sender`.", conf->name);
    }
    if (env->read_mail == NULL) {
        return err_set(err, ERR_INVAL, "Backend \"%s\" needs a reader of messages.", conf->name);
    }
    buf_init_secret(&key, 4096);
    if (conf->access_key == NULL ||
        codec_base64_decode(span_trim(span_of(conf->access_key)), false, &key) != 0 ||
        buf_len(&key) == 0) {
        buf_release(&key);
        return err_set(err, ERR_INVAL,
                       "Backend \"%s\": access_key must be the base64 text of the Keys page.",
                       conf->name);
    }
    struct acs *acs = mem_zero(sizeof(*acs));
    rest_backend_init(&acs->rest, &backend_acs_ops, &acs_rest_ops, env, conf, conf->concurrency);
    acs->key = key;
    acs->host = host;
    acs->api_version = conf->api_version != NULL ? conf->api_version : API_VERSION;
    acs->neutral_to = conf->neutral_to != NULL ? conf->neutral_to : conf->sender;
    uint64_t raised = conf->message_bytes / 3 * 4;
    acs->request_max_bytes = (size_t)(raised > REQUEST_MAX_BYTES ? raised : REQUEST_MAX_BYTES);
    *out = &acs->rest.base;
    return 0;
}

const struct backend_ops backend_acs_ops = {
    .type = "acs",
    .open = acs_open,
    .room = acs_room,
    .deliver = acs_deliver,
    .close = rest_close,
};
